// What a model file says about itself: the shape, names, units and domains of its inputs and outputs.
#ifndef CCG_CONTRACT_H
#define CCG_CONTRACT_H

#include "Json.h"

#include <string>
#include <vector>

namespace ccg {

/// One input or output. A quantity without a unit is dimensionless, or nobody said.
struct Quantity {
  std::string name;
  std::string unit;
  bool periodic = false;
  double low = 0.0;
  double high = 0.0;
};

/// An input with its answer by eager torch, evaluated again before the first step.
struct Trial {
  std::vector<double> input;     // [n_in]
  std::vector<double> values;    // [n_out]
  std::vector<double> gradient;  // [n_out * n_in], row by row
};

struct Contract {
  std::string backend;                 // "perceptron", "aoti" or "torchscript"
  std::string dtype;                   // "float32" or "float64"
  std::vector<Quantity> arguments;
  unsigned atoms = 0;                  // number of atoms whose positions follow the arguments
  std::vector<unsigned> serials;       // their numbers in the topology, from 1; empty: any
  std::string lengthUnit;              // of the positions
  std::vector<Quantity> outputs;
  double temperature = 0.0;            // K; 0: the model belongs to no temperature
  bool gradientInGraph = true;         // false: TorchScript that needs autograd
  std::vector<std::string> cpu;        // instruction sets that the machine code of a .pt2 uses
  std::vector<std::string> references;
  std::vector<Trial> trials;

  unsigned inputs() const {
    return static_cast<unsigned>(arguments.size()) + 3 * atoms;
  }

  /// Read and check; throws std::runtime_error with one line.
  static Contract fromJson(const Json& json);
};

}

#endif
