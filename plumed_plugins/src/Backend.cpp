#include "Backend.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <locale>
#include <sstream>
#include <stdexcept>

namespace ccg {

namespace {

bool endsWith(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

double largest(const std::vector<double>& numbers) {
  double out = 0.0;
  for (double number : numbers) {
    out = std::max(out, std::abs(number));
  }
  return out;
}

/// Largest difference in units of what is allowed; a NaN counts as infinitely far.
double distance(const std::vector<double>& found, const std::vector<double>& wanted, double tolerance) {
  const double allowed = tolerance * std::max(1.0, largest(wanted));
  double out = 0.0;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    const double difference = std::abs(found[i] - wanted[i]);
    out = std::isfinite(difference) ? std::max(out, difference / allowed) : INFINITY;
  }
  return out;
}

}

std::string firstLine(const std::string& text) {
  // TorchScript says "The following operation failed", a Python traceback, and at the very end what it was.
  const std::string last = "RuntimeError: ";
  const std::size_t error = text.rfind(last);
  const std::size_t start = error == std::string::npos ? text.find_first_not_of(" \n\t") : error + last.size();
  return start == std::string::npos ? "no reason given" : text.substr(start, text.find('\n', start) - start);
}

std::string show(double number, int digits) {
  std::ostringstream stream;
  stream.imbue(std::locale::classic());
  stream.precision(digits);
  stream << number;
  return stream.str();
}

Model openModel(const std::string& path, unsigned arguments, unsigned atoms) {
  if (!std::ifstream(path).good()) {
    throw std::runtime_error("the file cannot be read");
  }
  if (endsWith(path, ".json")) {
    return openPerceptron(path);
  }
#ifdef CCG_HAS_TORCH
  return endsWith(path, ".pt2") ? openAoti(path) : openScript(path, arguments, atoms);
#else
  (void) arguments;
  (void) atoms;
  throw std::runtime_error("this plug-in was built without libtorch and reads .json perceptrons only; "
                           "build it with torch: ccg plumed build");
#endif
}

void runTrials(Backend& backend, const Contract& contract) {
  const double tolerance = contract.dtype == "float64" ? 1e-9 : 1e-3;
  const std::size_t outputs = contract.outputs.size();
  std::vector<double> values(outputs), gradient(outputs * contract.inputs());
  if (contract.trials.empty()) {
    // No answers to compare with; but an input of the wrong size or type ends here rather than in the first step.
    std::vector<double> input(contract.inputs());
    for (std::size_t i = 0; i < input.size(); ++i) {
      input[i] = 0.1 * static_cast<double>(i + 1);
    }
    backend.evaluate(input.data(), values.data(), gradient.data());
  }
  for (std::size_t i = 0; i < contract.trials.size(); ++i) {
    const Trial& trial = contract.trials[i];
    backend.evaluate(trial.input.data(), values.data(), gradient.data());
    const double off = std::max(distance(values, trial.values, tolerance), distance(gradient, trial.gradient, tolerance));
    if (!(off <= 1.0)) {
      throw std::runtime_error("trial " + std::to_string(i + 1) + " gives " + show(values[0]) + " where torch gave " +
                               show(trial.values[0]) + " (value or gradient " + show(off) +
                               " times as far off as allowed); export the model again on this machine");
    }
  }
}

}
