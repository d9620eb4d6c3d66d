#include "ContractCheck.h"

#include "Backend.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <stdexcept>

namespace ccg {

namespace {

[[noreturn]] void disagree(const std::string& what, const std::string& model, const std::string& line) {
  throw std::runtime_error(what + ": the model has " + model + ", the input line " + line);
}

std::string number(std::size_t count, const std::string& noun) {
  return std::to_string(count) + " " + noun + (count == 1 ? "" : "s");
}

std::string domain(const Quantity& quantity) {
  return quantity.periodic ? "a period from " + show(quantity.low) + " to " + show(quantity.high) : "no period";
}

bool sameDomain(const Quantity& a, const Quantity& b) {
  const double near = 1e-6;
  return a.periodic == b.periodic &&
         (!a.periodic || (std::abs(a.low - b.low) < near && std::abs(a.high - b.high) < near));
}

/// PLUMED's values carry no unit, but its input has one of each kind, and a model of nm fed with Angstrom runs on.
void checkUnit(const std::string& what, const std::string& unit, const InputLine& line) {
  struct Known {
    double factor;
    double found;
    const char* base;
  };
  const std::map<std::string, Known> known = {
    {"nm", {1.0, line.lengthUnit, "nm"}}, {"A", {0.1, line.lengthUnit, "nm"}},
    {"kJ/mol", {1.0, line.energyUnit, "kJ/mol"}}, {"kcal/mol", {4.184, line.energyUnit, "kJ/mol"}},
    {"ps", {1.0, line.timeUnit, "ps"}}, {"fs", {0.001, line.timeUnit, "ps"}}
  };
  const auto entry = known.find(unit);
  if (entry == known.end() || std::abs(entry->second.factor / entry->second.found - 1.0) < 1e-6) {
    return;
  }
  disagree("unit of " + what, unit, "UNITS of " + show(entry->second.found) + " " + entry->second.base);
}

void checkArguments(const Contract& contract, const InputLine& line) {
  if (contract.arguments.size() != line.arguments.size()) {
    disagree("number of arguments", number(contract.arguments.size(), "argument"),
             number(line.arguments.size(), "argument") + " in ARG");
  }
  for (std::size_t i = 0; i < contract.arguments.size(); ++i) {
    const Quantity& wanted = contract.arguments[i];
    const Quantity& given = line.arguments[i];
    const std::string what = "argument " + std::to_string(i + 1);
    // Two torsions in the wrong order have the same unit and the same period: only their names tell.
    if (!line.anyNames && !wanted.name.empty() && wanted.name != given.name) {
      disagree("name of " + what + " (ANY_NAMES allows others)", "\"" + wanted.name + "\"", "\"" + given.name + "\"");
    }
    if (!sameDomain(wanted, given)) {
      disagree("period of " + what + " (" + given.name + ")", domain(wanted), domain(given));
    }
    checkUnit(what, wanted.unit, line);
  }
}

void checkAtoms(const Contract& contract, const InputLine& line) {
  if (contract.atoms != line.serials.size()) {
    disagree("number of atoms", number(contract.atoms, "atom"), number(line.serials.size(), "atom") + " in ATOMS");
  }
  for (std::size_t i = 0; i < contract.serials.size(); ++i) {
    if (contract.serials[i] != line.serials[i]) {
      disagree("atom " + std::to_string(i + 1), "atom number " + std::to_string(contract.serials[i]),
               std::to_string(line.serials[i]));
    }
  }
  if (contract.atoms > 0) {
    checkUnit("ATOMS", contract.lengthUnit, line);
  }
}

void checkBias(const Contract& contract) {
  if (contract.outputs.size() != 1) {
    disagree("outputs", number(contract.outputs.size(), "output"), "BIAS, which takes one");
  }
  const Quantity& output = contract.outputs.front();
  if (output.unit != "kJ/mol" && output.unit != "kcal/mol") {
    disagree("unit of output \"" + output.name + "\"", output.unit.empty() ? "no unit" : output.unit,
             "BIAS, which takes an energy in kJ/mol or kcal/mol");
  }
  if (output.periodic) {
    disagree("output \"" + output.name + "\"", domain(output), "BIAS, which takes a value without one");
  }
}

}

void checkContract(const Contract& contract, const InputLine& line) {
  checkArguments(contract, line);
  checkAtoms(contract, line);
  for (const Quantity& output : contract.outputs) {
    checkUnit("output \"" + output.name + "\"", output.unit, line);
  }
  if (line.bias) {
    checkBias(contract);
  }
  if (contract.temperature > 0 && line.temperature > 0 && std::abs(contract.temperature - line.temperature) > 0.05) {
    disagree("temperature", show(contract.temperature, 6) + " K",
             "or the MD engine " + show(line.temperature, 6) + " K");
  }
}

void checkTranslation(const Contract& contract, const std::vector<double>& gradient, std::vector<double>& scale) {
  const std::size_t first = contract.arguments.size(), n = contract.inputs();
  const double tolerance = contract.dtype == "float64" ? 1e-8 : 1e-3;
  for (std::size_t k = 0; k < contract.outputs.size(); ++k) {
    const double* row = gradient.data() + k * n;
    double sum[3] = {0.0, 0.0, 0.0};
    for (std::size_t i = first; i < n; ++i) {
      scale[k] = std::max(scale[k], std::abs(row[i]));
      sum[(i - first) % 3] += row[i];
    }
    const double drift = std::max({std::abs(sum[0]), std::abs(sum[1]), std::abs(sum[2])});
    if (drift > tolerance * std::max(scale[k], 1e-3) * std::sqrt(double(contract.atoms))) {
      throw std::runtime_error("output \"" + contract.outputs[k].name + "\" changes when all atoms move together "
                               "(gradients sum to " + show(drift) + "), so that its virial is undefined; use a model "
                               "of relative positions, distances for instance");
    }
  }
}

}
