// The one interface behind which the three ways to evaluate a model live.
#ifndef CCG_BACKEND_H
#define CCG_BACKEND_H

#include "Contract.h"

#include <memory>
#include <string>

namespace ccg {

class Backend {
public:
  virtual ~Backend() = default;

  /// Values and their gradient at one input.
  /// @param input [n_in]: arguments, then x, y, z of each atom.
  /// @param values [n_out], written.
  /// @param gradient [n_out * n_in], written row by row: d values[k] / d input[i] at k * n_in + i.
  virtual void evaluate(const double* input, double* values, double* gradient) = 0;
};

/// A model as it was opened. Without a contract only the number of outputs is known (TorchScript of others).
struct Model {
  std::unique_ptr<Backend> backend;
  Contract contract;
  bool hasContract = true;
  std::string description;  // for the log: which back-end, of which version
};

/// Open a model file; the suffix decides: .json, .pt2, anything else is TorchScript.
/// @param arguments, atoms: what the input line has, needed where the file has no contract.
/// Throws std::runtime_error with one line.
Model openModel(const std::string& path, unsigned arguments, unsigned atoms);

Model openPerceptron(const std::string& path);
Model openAoti(const std::string& path);
Model openScript(const std::string& path, unsigned arguments, unsigned atoms);

/// Evaluate the trials of the contract and compare with their answers; throws std::runtime_error with one line.
void runTrials(Backend& backend, const Contract& contract);

/// The line of a message that matters: libtorch puts a C++ backtrace below it, TorchScript a Python one above.
std::string firstLine(const std::string& text);

/// "1.5e-05": a number for a message, or with all digits.
std::string show(double number, int digits = 9);

}

#endif
