#include "Features.h"

#include <cmath>
#include <stdexcept>

namespace ccg {

Features::Features(const Json& json, const Contract& contract) {
  const unsigned arguments = contract.arguments.size();
  for (const Json& item : json.array()) {
    const std::string kind = item.at("kind").string();
    if (kind == "distance") {
      const std::vector<Json>& pair = item.at("pair").array();
      const unsigned i = pair.at(0).count(), j = pair.at(1).count();
      if (pair.size() != 2 || i >= contract.atoms || j >= contract.atoms || i == j) {
        throw std::runtime_error("a distance between atoms that the model does not have");
      }
      items_.push_back({Kind::distance, arguments + 3 * i, arguments + 3 * j, size_});
      size_ += 1;
    } else if (kind == "argument" || kind == "sincos") {
      const unsigned index = item.at("index").count();
      if (index >= arguments) {
        throw std::runtime_error("a feature of an argument that the model does not have");
      }
      const bool circle = kind == "sincos";
      items_.push_back({circle ? Kind::sincos : Kind::argument, index, 0, size_});
      size_ += circle ? 2 : 1;
    } else {
      throw std::runtime_error("feature \"" + kind + "\", expected argument, sincos or distance");
    }
  }
  out_.resize(size_);
  directions_.resize(3 * items_.size());
}

const std::vector<double>& Features::evaluate(const double* input) {
  double* direction = directions_.data();
  for (const Item& item : items_) {
    const double* a = input + item.first;
    if (item.kind == Kind::argument) {
      out_[item.out] = *a;
    } else if (item.kind == Kind::sincos) {
      out_[item.out] = std::sin(*a);
      out_[item.out + 1] = std::cos(*a);
    } else {
      const double* b = input + item.second;
      const double d[3] = {b[0] - a[0], b[1] - a[1], b[2] - a[2]};
      const double length = std::sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2]);
      out_[item.out] = length;
      // Two atoms on one spot divide by zero here: the action stops at the NaN and names the atoms.
      for (unsigned k = 0; k < 3; ++k) {
        direction[k] = d[k] / length;
      }
    }
    direction += 3;
  }
  return out_;
}

void Features::pullBack(const double* cotangent, double* gradient) const {
  const double* direction = directions_.data();
  for (const Item& item : items_) {
    const double g = cotangent[item.out];
    if (item.kind == Kind::argument) {
      gradient[item.first] += g;
    } else if (item.kind == Kind::sincos) {
      gradient[item.first] += g * out_[item.out + 1] - cotangent[item.out + 1] * out_[item.out];
    } else {
      for (unsigned k = 0; k < 3; ++k) {
        gradient[item.second + k] += g * direction[k];
        gradient[item.first + k] -= g * direction[k];
      }
    }
    direction += 3;
  }
}

}
