#include "Activation.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <stdexcept>

namespace ccg {

namespace {

/// exp(a) for a <= 0 to 2e-16 of 1, without a call, so that loops over it become vector code. A NaN stays one.
/// a = n ln 2 + r with |r| <= ln 2 / 2; adding 1.5 * 2^52 leaves n in the low bits, which become the exponent.
inline double expNegative(double a) {
  constexpr double shift = 6755399441055744.0;
  constexpr double inverseLn2 = 1.4426950408889634, ln2High = 0.6931471803691238, ln2Low = 1.9082149292705877e-10;
  a = std::max(a, -708.0);  // below, the result is no normal number; in this order a NaN passes
  const double shifted = a * inverseLn2 + shift;
  const double n = shifted - shift;
  const double r = (a - n * ln2High) - n * ln2Low;
  double p = 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  std::uint64_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 52) + 0x3ff0000000000000ull;
  double scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return p * scale;
}

/// 1 / (1 + exp(-x)), from the exponential that cannot overflow.
inline double sigmoid(double x) {
  const double e = expNegative(-std::fabs(x));
  return (x >= 0.0 ? 1.0 : e) / (1.0 + e);
}

CCG_CLONES void tanhAll(double* y, double* slope, unsigned n) {
  for (unsigned j = 0; j < n; ++j) {
    const double e = expNegative(-2.0 * std::fabs(y[j]));
    const double t = std::copysign((1.0 - e) / (1.0 + e), y[j]);
    y[j] = t;
    slope[j] = 1.0 - t * t;
  }
}

CCG_CLONES void sigmoidAll(double* y, double* slope, unsigned n) {
  for (unsigned j = 0; j < n; ++j) {
    const double s = sigmoid(y[j]);
    y[j] = s;
    slope[j] = s * (1.0 - s);
  }
}

CCG_CLONES void siluAll(double* y, double* slope, unsigned n) {
  for (unsigned j = 0; j < n; ++j) {
    const double x = y[j], s = sigmoid(x);
    y[j] = x * s;
    slope[j] = s * (1.0 + x * (1.0 - s));
  }
}

void softplusAll(double* y, double* slope, unsigned n) {
  for (unsigned j = 0; j < n; ++j) {
    const double x = y[j];
    y[j] = x > 20.0 ? x : std::log1p(std::exp(x));  // torch's threshold
    slope[j] = x > 20.0 ? 1.0 : sigmoid(x);
  }
}

void reluAll(double* y, double* slope, unsigned n) {
  for (unsigned j = 0; j < n; ++j) {
    slope[j] = y[j] > 0.0 ? 1.0 : 0.0;
    y[j] = y[j] < 0.0 ? 0.0 : y[j];  // in this order a NaN stays one
  }
}

}

Activation activationNamed(const std::string& name) {
  static const std::map<std::string, Activation> known = {
    {"linear", Activation::linear}, {"tanh", Activation::tanh}, {"silu", Activation::silu},
    {"sigmoid", Activation::sigmoid}, {"softplus", Activation::softplus}, {"relu", Activation::relu}
  };
  const auto found = known.find(name);
  if (found == known.end()) {
    throw std::runtime_error("activation \"" + name + "\", expected linear, tanh, silu, sigmoid, softplus or relu");
  }
  return found->second;
}

void activate(Activation kind, double* y, double* slope, unsigned n) {
  switch (kind) {
  case Activation::linear:
    std::fill(slope, slope + n, 1.0);
    break;
  case Activation::tanh:
    tanhAll(y, slope, n);
    break;
  case Activation::sigmoid:
    sigmoidAll(y, slope, n);
    break;
  case Activation::silu:
    siluAll(y, slope, n);
    break;
  case Activation::softplus:
    softplusAll(y, slope, n);
    break;
  case Activation::relu:
    reluAll(y, slope, n);
    break;
  }
}

}
