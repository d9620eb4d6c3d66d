#include "Perceptron.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <stdexcept>

namespace ccg {

namespace {

/// y[j] += sum over i of x[i] matrix[i][j]; the inner loop has no sum across lanes, so it becomes vector code as it is.
/// Four rows at a time: y goes to memory and back once for four of them, with the same roundings as one by one.
CCG_CLONES
void multiplyAdd(const double* __restrict matrix, const double* __restrict x, double* __restrict y, unsigned nX,
                 unsigned nY) {
  const std::size_t width = nY;
  unsigned i = 0;
  for (; i + 4 <= nX; i += 4) {
    const double s0 = x[i], s1 = x[i + 1], s2 = x[i + 2], s3 = x[i + 3];
    const double* __restrict r0 = matrix + i * width;
    const double* __restrict r1 = r0 + width;
    const double* __restrict r2 = r1 + width;
    const double* __restrict r3 = r2 + width;
    for (unsigned j = 0; j < nY; ++j) {
      y[j] = (((y[j] + s0 * r0[j]) + s1 * r1[j]) + s2 * r2[j]) + s3 * r3[j];
    }
  }
  for (; i < nX; ++i) {
    const double scale = x[i];
    const double* __restrict row = matrix + i * width;
    for (unsigned j = 0; j < nY; ++j) {
      y[j] += scale * row[j];
    }
  }
}

Layer readLayer(const Json& json, unsigned nIn) {
  Layer layer;
  layer.nIn = nIn;
  layer.bias = json.at("bias").numbers();
  layer.nOut = layer.bias.size();
  layer.activation = activationNamed(json.at("activation").string());
  layer.byOutput = json.at("weight").numbers();
  if (layer.nOut == 0 || layer.byOutput.size() != static_cast<std::size_t>(nIn) * layer.nOut) {
    throw std::runtime_error("a layer of " + std::to_string(nIn) + " inputs and " + std::to_string(layer.nOut) +
                             " outputs has " + std::to_string(layer.byOutput.size()) + " weights");
  }
  layer.byInput.resize(layer.byOutput.size());
  for (unsigned j = 0; j < layer.nOut; ++j) {
    for (unsigned i = 0; i < nIn; ++i) {
      layer.byInput[i * layer.nOut + j] = layer.byOutput[j * nIn + i];
    }
  }
  layer.out.resize(layer.nOut);
  layer.slope.resize(layer.nOut);
  return layer;
}

}

Perceptron::Perceptron(const Json& json, const Contract& contract)
  : nIn_(contract.inputs()), features_(json.at("features"), contract) {
  unsigned width = features_.size(), widest = width;
  for (const Json& item : json.at("layers").array()) {
    layers_.push_back(readLayer(item, width));
    width = layers_.back().nOut;
    widest = std::max(widest, width);
  }
  if (layers_.empty() || width != contract.outputs.size()) {
    throw std::runtime_error("the last layer has " + std::to_string(width) + " outputs, the contract " +
                             std::to_string(contract.outputs.size()));
  }
  cotangent_.resize(widest);
  next_.resize(widest);
}

void Perceptron::forward(const double* input) {
  const double* x = features_.evaluate(input).data();
  for (Layer& layer : layers_) {
    layer.out = layer.bias;
    multiplyAdd(layer.byInput.data(), x, layer.out.data(), layer.nIn, layer.nOut);
    activate(layer.activation, layer.out.data(), layer.slope.data(), layer.nOut);
    x = layer.out.data();
  }
}

void Perceptron::backward(unsigned output, double* gradient) {
  std::fill(cotangent_.begin(), cotangent_.end(), 0.0);
  cotangent_[output] = 1.0;
  for (auto layer = layers_.rbegin(); layer != layers_.rend(); ++layer) {
    for (unsigned j = 0; j < layer->nOut; ++j) {
      cotangent_[j] *= layer->slope[j];
    }
    std::fill(next_.begin(), next_.begin() + layer->nIn, 0.0);
    multiplyAdd(layer->byOutput.data(), cotangent_.data(), next_.data(), layer->nOut, layer->nIn);
    cotangent_.swap(next_);
  }
  features_.pullBack(cotangent_.data(), gradient);
}

void Perceptron::evaluate(const double* input, double* values, double* gradient) {
  forward(input);
  const Layer& last = layers_.back();
  std::fill(gradient, gradient + static_cast<std::size_t>(nIn_) * last.nOut, 0.0);
  for (unsigned k = 0; k < last.nOut; ++k) {
    values[k] = last.out[k];
    backward(k, gradient + static_cast<std::size_t>(k) * nIn_);
  }
}

Model openPerceptron(const std::string& path) {
  std::ifstream file(path);
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const Json json = Json::parse(text);
  Model model;
  model.contract = Contract::fromJson(json.at("contract"));
  if (model.contract.backend != "perceptron") {
    throw std::runtime_error("the contract is one for \"" + model.contract.backend + "\", a .json file holds a perceptron");
  }
  model.backend = std::make_unique<Perceptron>(json, model.contract);
  model.description = "built-in perceptron, float64";
  return model;
}

}
