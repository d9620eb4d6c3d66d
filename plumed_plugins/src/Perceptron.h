// Plain perceptrons in float64, evaluated here: no libtorch, no allocation in a step.
#ifndef CCG_PERCEPTRON_H
#define CCG_PERCEPTRON_H

#include "Activation.h"
#include "Backend.h"
#include "Features.h"

#include <vector>

namespace ccg {

/// One layer, y = activation(W x + b). W is kept twice, so that both ways through it run along memory.
struct Layer {
  unsigned nIn = 0;
  unsigned nOut = 0;
  std::vector<double> byInput;   // [nIn * nOut]
  std::vector<double> byOutput;  // [nOut * nIn]
  std::vector<double> bias;      // [nOut]
  Activation activation = Activation::linear;
  std::vector<double> out;       // [nOut], of the last evaluation
  std::vector<double> slope;     // [nOut], d out / d (W x + b)
};

class Perceptron : public Backend {
public:
  /// @param json the whole file.
  Perceptron(const Json& json, const Contract& contract);
  void evaluate(const double* input, double* values, double* gradient) override;

private:
  void forward(const double* input);
  void backward(unsigned output, double* gradient);

  unsigned nIn_;
  Features features_;
  std::vector<Layer> layers_;
  std::vector<double> cotangent_, next_;  // as long as the widest layer
};

}

#endif
