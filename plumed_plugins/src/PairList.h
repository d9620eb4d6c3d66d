// Which beads may be closer than the cut-off: a Verlet list, rebuilt over cells when beads have moved too far.
#ifndef CCG_PAIR_LIST_H
#define CCG_PAIR_LIST_H

#include "tools/Tensor.h"
#include "tools/Vector.h"

#include <array>
#include <utility>
#include <vector>

namespace ccg {

/// Neighbours of one bead with one table, all seen through the same shift of the lattice.
struct PairRow {
  unsigned bead;
  unsigned begin, end;  // into the part's neighbours
  int table;
  int shift;  // into PairList::shift
};

/// The rows of one thread.
struct PairPart {
  std::vector<PairRow> rows;
  std::vector<unsigned> neighbours;
};

/// A half list: every pair of images closer than cut-off + buffer once. Beads are kept in the order of their cells
/// ("places"), so that neighbours in space are neighbours in memory.
///
/// A list is good while no two beads can have come together from outside it: the lattice may have shrunk all distances by
/// a factor 1 - e, and every bead may have moved by d in the lattice's coordinates, so (cut-off + buffer)(1 - e) - 2 d must
/// not be below the cut-off.
class PairList {
public:
  /// @param types [beads] type of each bead, below typeCount.
  /// @param tableOf [typeCount * typeCount] table of two types; negative where they do not interact.
  /// @param excluded sorted pairs of beads, first < second.
  /// @param buffer at most the cut-off.
  PairList(std::vector<int> types, int typeCount, std::vector<int> tableOf,
           const std::vector<std::pair<unsigned, unsigned>>& excluded, double cutoff, double buffer, unsigned threads);

  /// Take new positions, and rebuild if need be.
  /// @param box rows are the lattice's vectors; must hold the cut-off twice in each direction (see widths).
  /// @param periodic false: there is no box.
  /// Throws std::runtime_error where a position is not finite.
  void update(const std::vector<PLMD::Vector>& positions, const PLMD::Tensor& box, bool periodic);

  const std::vector<PairPart>& parts() const { return parts_; }
  /// Positions by place, each the image that the shifts belong to.
  const std::vector<PLMD::Vector>& positions() const { return positions_; }
  /// Bead at each place.
  const std::vector<unsigned>& beadAt() const { return beadAt_; }
  /// The vector that a row's shift stands for, to be added to a neighbour's position.
  const PLMD::Vector& shift(int index) const { return shifts_[index]; }
  static constexpr int shiftCount = 27;
  std::size_t builds() const { return builds_; }

private:
  bool follow(const std::vector<PLMD::Vector>& positions);
  void build(const std::vector<PLMD::Vector>& positions);
  void setLattice(const std::vector<PLMD::Vector>& positions);
  void sortIntoCells(const std::vector<PLMD::Vector>& positions);
  void fill(unsigned part);
  void addNeighbours(unsigned place, PairPart& part) const;
  void addRun(unsigned place, unsigned begin, unsigned end, int table, int shift, PairPart& part) const;
  bool isExcluded(unsigned a, unsigned b) const;

  std::vector<int> types_;
  int typeCount_;
  std::vector<int> tableOf_;
  std::vector<unsigned> exclusionStart_, exclusions_;  // by bead, both directions, sorted
  double cutoff_, reach_;
  std::size_t builds_ = 0;

  PLMD::Tensor box_, inverse_;            // now; without a box unused
  PLMD::Tensor lattice_, latticeInverse_;  // of the cells, at the last build
  bool periodic_ = false, builtPeriodic_ = false;
  PLMD::Vector origin_;
  std::array<int, 3> cells_ = {1, 1, 1};
  std::array<PLMD::Vector, shiftCount> shifts_;

  std::vector<unsigned> beadAt_, cellAt_;     // by place
  std::vector<unsigned> runStart_;            // [cells * types + 1] first place of each type in each cell
  std::vector<PLMD::Vector> positions_, fractions_;
  std::vector<PairPart> parts_;
};

/// Distances between opposite faces of the box.
PLMD::Vector widths(const PLMD::Tensor& box);

}

#endif
