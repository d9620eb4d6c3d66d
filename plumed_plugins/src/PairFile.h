// The text files of PAIR_TABLE: tables of pair potentials, types of beads, excluded pairs.
#ifndef CCG_PAIR_FILE_H
#define CCG_PAIR_FILE_H

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

namespace ccg {

/// One potential V(r): a cubic per interval, a straight line below the first node, zero from the last node on.
struct PairSpline {
  double first = 0.0;      // r of the first node
  double perLength = 0.0;  // intervals per unit of length
  double cutoff = 0.0;     // r of the last node
  /// [4 * (intervals + 2)]: V = c0 + t (c1 + t (c2 + t c3)) with t in intervals; the first four are the straight line, the
  /// last four are zero, for an r that rounding puts at the cut-off.
  std::vector<double> coefficients;
};

/// Content of a table file.
struct PairTables {
  static constexpr int none = -1;

  std::string lengthUnit, energyUnit;
  double temperature = 0.0;  // K; 0: valid at any
  std::vector<std::string> types;
  std::vector<std::size_t> beadsOfType;  // the system that the tables were made for
  std::vector<int> index;                // [types * types] into splines, or none where two types do not interact
  std::vector<PairSpline> splines;

  std::size_t beads() const;
  double cutoff() const;  // the largest
};

/// Read a table file; throws std::runtime_error with one line.
///
///   ccg_pair_tables 1                 version of the format
///   kind pair
///   units nm kJ/mol
///   temperature 300                   may be left out
///   type CH3 600                      one line for each type: name and number of its beads
///   table CH3 CH3 0.02 0.002 491      types, r of the first node, spacing, number of nodes; then one node a line:
///   0.02 154.1 -812.5                 r, V, dV/dr
///   none CH3 OH                       these do not interact
///
/// Each pair of types needs one of the two. Between nodes V is the cubic with these values and slopes. Empty lines and
/// what follows # do not count.
PairTables readPairTables(const std::string& path);

/// Read types: lines "FIRST LAST TYPE", positions in ATOMS from 1, every bead once.
/// @return [beads] indices into names.
std::vector<int> readBeadTypes(const std::string& path, std::size_t beads, const std::vector<std::string>& names);

/// Read excluded pairs: lines "I J", positions in ATOMS from 1.
/// @return pairs from 0, first < second, sorted, each once.
std::vector<std::pair<unsigned, unsigned>> readExclusions(const std::string& path, std::size_t beads);

}

#endif
