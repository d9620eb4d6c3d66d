// The contract against the input line: every mismatch is one line that names both sides.
#ifndef CCG_CONTRACT_CHECK_H
#define CCG_CONTRACT_CHECK_H

#include "Contract.h"

#include <string>
#include <vector>

namespace ccg {

/// What the input line and the MD engine say.
struct InputLine {
  std::vector<Quantity> arguments;  // with names and domains; PLUMED's values have no units
  std::vector<unsigned> serials;    // of ATOMS, from 1
  double lengthUnit = 1.0;          // nm
  double energyUnit = 1.0;          // kJ/mol
  double timeUnit = 1.0;            // ps
  double temperature = 0.0;         // K; 0: neither TEMP nor the engine says
  bool anyNames = false;            // labels may differ from the contract's names
  bool bias = false;
};

/// Throws std::runtime_error with one line.
void checkContract(const Contract& contract, const InputLine& line);

/// Refuse a model of atoms whose value changes when all of them move together: its virial is undefined.
/// @param gradient [n_out * n_in] at some input.
/// @param scale [n_out] largest derivative by a position so far, updated: rounding errors are judged against it, so that
///   a step where a model happens to be nearly flat stops nothing.
void checkTranslation(const Contract& contract, const std::vector<double>& gradient, std::vector<double>& scale);

}

#endif
