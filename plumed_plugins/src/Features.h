// First layer of a built-in model: arguments, their sine and cosine, and distances between atoms.
#ifndef CCG_FEATURES_H
#define CCG_FEATURES_H

#include "Contract.h"
#include "Json.h"

#include <vector>

namespace ccg {

class Features {
public:
  /// @param json list of {"kind": "argument" | "sincos", "index": i} and {"kind": "distance", "pair": [i, j]}.
  Features(const Json& json, const Contract& contract);

  unsigned size() const {
    return size_;
  }

  const std::vector<double>& evaluate(const double* input);

  /// Add cotangent . d features / d input to gradient [n_in].
  void pullBack(const double* cotangent, double* gradient) const;

private:
  enum class Kind { argument, sincos, distance };
  struct Item {
    Kind kind;
    unsigned first;   // offset into the input
    unsigned second;  // that of the other atom
    unsigned out;     // offset into the features
  };

  std::vector<Item> items_;
  std::vector<double> out_;         // [size]
  std::vector<double> directions_;  // [3 * items]: unit vectors of the distances
  unsigned size_ = 0;
};

}

#endif
