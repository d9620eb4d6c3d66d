// Activations of the built-in perceptron: value and slope of a whole layer at once.
#ifndef CCG_ACTIVATION_H
#define CCG_ACTIVATION_H

#include <string>

// Functions with all the arithmetic are built for AVX2 beside the baseline and chosen at load time: the cache of plug-ins
// may lie on a file system that machines of several generations share.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
#if __GNUC__ >= 12
#define CCG_CLONES __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define CCG_CLONES __attribute__((target_clones("avx2", "default")))  // not "arch=haswell": that asks for Intel's own
#endif
#else
#define CCG_CLONES
#endif

namespace ccg {

enum class Activation { linear, tanh, silu, sigmoid, softplus, relu };

/// Throws std::runtime_error for a name that is none.
Activation activationNamed(const std::string& name);

/// Replace y [n] by activation(y) and write its derivative to slope [n].
void activate(Activation kind, double* y, double* slope, unsigned n);

}

#endif
