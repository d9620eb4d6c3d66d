#include "PairList.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

namespace ccg {

namespace {

using PLMD::Tensor;
using PLMD::Vector;

/// Half of the 26 neighbours of a cell: of two opposite ones the one that comes first here.
constexpr std::array<std::array<int, 3>, 13> halfStencil = {{
  {1, 0, 0}, {-1, 1, 0}, {0, 1, 0}, {1, 1, 0},
  {-1, -1, 1}, {0, -1, 1}, {1, -1, 1}, {-1, 0, 1}, {0, 0, 1}, {1, 0, 1}, {-1, 1, 1}, {0, 1, 1}, {1, 1, 1}
}};

constexpr int noShift = 13;
/// Places that a thread takes in turn: dense regions are shared, and sums stay the same from run to run.
constexpr unsigned block = 32;

Vector vectorOf(const Tensor& box, int a, int b, int c) {
  return PLMD::matmul(Vector(a, b, c), box);
}

/// The largest factor, less one, by which the map from one lattice to another changes a length.
double strain(const Tensor& fromInverse, const Tensor& to) {
  Tensor change = PLMD::matmul(fromInverse, to) - Tensor::identity();
  double sum = 0.0;
  for (unsigned i = 0; i < 9; ++i) {
    sum += change(i / 3, i % 3) * change(i / 3, i % 3);
  }
  return std::sqrt(sum);
}

}

Vector widths(const Tensor& box) {
  const Tensor inverse = box.inverse();
  Vector out;
  for (unsigned k = 0; k < 3; ++k) {
    out[k] = 1.0 / std::sqrt(inverse(0, k) * inverse(0, k) + inverse(1, k) * inverse(1, k) +
                             inverse(2, k) * inverse(2, k));
  }
  return out;
}

PairList::PairList(std::vector<int> types, int typeCount, std::vector<int> tableOf,
                   const std::vector<std::pair<unsigned, unsigned>>& excluded, double cutoff, double buffer,
                   unsigned threads)
  : types_(std::move(types)), typeCount_(typeCount), tableOf_(std::move(tableOf)), cutoff_(cutoff),
    reach_(cutoff + buffer), parts_(threads) {
  std::vector<std::vector<unsigned>> partners(types_.size());
  for (const auto& pair : excluded) {
    partners[pair.first].push_back(pair.second);
    partners[pair.second].push_back(pair.first);
  }
  exclusionStart_.push_back(0);
  for (std::vector<unsigned>& list : partners) {
    std::sort(list.begin(), list.end());
    exclusions_.insert(exclusions_.end(), list.begin(), list.end());
    exclusionStart_.push_back(unsigned(exclusions_.size()));
  }
  positions_.resize(types_.size());
  fractions_.resize(types_.size());
}

void PairList::update(const std::vector<Vector>& positions, const Tensor& box, bool periodic) {
  periodic_ = periodic;
  box_ = box;
  if (periodic) {
    inverse_ = box.inverse();
  }
  if (builds_ == 0 || periodic_ != builtPeriodic_ || !follow(positions)) {
    build(positions);
  }
}

/// Move the beads of the list to their new positions; false where the list is no longer good.
bool PairList::follow(const std::vector<Vector>& positions) {
  const double slack = periodic_ ? reach_ * (1.0 - strain(latticeInverse_, box_)) - cutoff_ : reach_ - cutoff_;
  if (slack <= 0.0) {
    return false;
  }
  const double most = 0.25 * slack * slack;
  const Tensor& lattice = periodic_ ? box_ : lattice_;
  bool good = true;
  for (std::size_t place = 0; place < positions_.size(); ++place) {
    const Vector reference = PLMD::matmul(fractions_[place], lattice) + origin_;
    Vector now = positions[beadAt_[place]];
    Vector moved = now - reference;
    if (periodic_ && !(moved.modulo2() <= most)) {
      // The MD engine has put the bead back into the box.
      Vector turns = PLMD::matmul(moved, inverse_);
      for (unsigned k = 0; k < 3; ++k) {
        turns[k] = std::rint(turns[k]);
      }
      now -= PLMD::matmul(turns, box_);
      moved = now - reference;
    }
    positions_[place] = now;
    good = good && moved.modulo2() <= most;
  }
  if (good && periodic_) {
    for (int s = 0; s < shiftCount; ++s) {
      shifts_[s] = vectorOf(box_, s % 3 - 1, s / 3 % 3 - 1, s / 9 - 1);
    }
  }
  return good;
}

void PairList::build(const std::vector<Vector>& positions) {
  setLattice(positions);
  sortIntoCells(positions);
#pragma omp parallel for schedule(static, 1) num_threads(parts_.size())
  for (std::size_t part = 0; part < parts_.size(); ++part) {
    fill(unsigned(part));
  }
  builtPeriodic_ = periodic_;
  ++builds_;
}

/// The box, or without one a box around all beads, so wide that nothing is seen through its faces.
void PairList::setLattice(const std::vector<Vector>& positions) {
  if (periodic_) {
    origin_ = Vector(0.0, 0.0, 0.0);
    lattice_ = box_;
  } else {
    Vector low = positions.front(), high = positions.front();
    for (const Vector& position : positions) {
      for (unsigned k = 0; k < 3; ++k) {
        low[k] = std::min(low[k], position[k]);
        high[k] = std::max(high[k], position[k]);
      }
    }
    origin_ = low;
    lattice_ = Tensor();
    for (unsigned k = 0; k < 3; ++k) {
      lattice_(k, k) = high[k] - low[k] + 2.0 * reach_;
    }
  }
  latticeInverse_ = lattice_.inverse();
  const Vector width = widths(lattice_);
  // Not many more cells than beads, however thin the system is.
  const double most = 2.0 * std::cbrt(double(positions.size())) + 1.0;
  for (unsigned k = 0; k < 3; ++k) {
    cells_[k] = std::max(1, int(std::min(width[k] / reach_, most)));
  }
  for (int s = 0; s < shiftCount; ++s) {
    shifts_[s] = vectorOf(lattice_, s % 3 - 1, s / 3 % 3 - 1, s / 9 - 1);
  }
}

/// Counting sort by cell, and by type within a cell.
void PairList::sortIntoCells(const std::vector<Vector>& positions) {
  const std::size_t beads = positions.size();
  std::vector<unsigned> cell(beads);
  std::vector<Vector> wrapped(beads), fraction(beads);
  runStart_.assign(std::size_t(cells_[0]) * cells_[1] * cells_[2] * typeCount_ + 1, 0);
  for (std::size_t bead = 0; bead < beads; ++bead) {
    const Vector inside = PLMD::matmul(positions[bead] - origin_, latticeInverse_);
    Vector turns;
    int at[3];
    for (unsigned k = 0; k < 3; ++k) {
      if (!std::isfinite(inside[k])) {
        throw std::runtime_error("the position of bead " + std::to_string(bead + 1) + " of ATOMS is not finite");
      }
      turns[k] = std::floor(inside[k]);
      fraction[bead][k] = inside[k] - turns[k];
      at[k] = std::min(int(fraction[bead][k] * cells_[k]), cells_[k] - 1);
    }
    wrapped[bead] = positions[bead] - PLMD::matmul(turns, lattice_);
    cell[bead] = unsigned((at[2] * cells_[1] + at[1]) * cells_[0] + at[0]);
    ++runStart_[cell[bead] * typeCount_ + types_[bead] + 1];
  }
  for (std::size_t run = 1; run < runStart_.size(); ++run) {
    runStart_[run] += runStart_[run - 1];
  }
  std::vector<unsigned> next(runStart_.begin(), runStart_.end() - 1);
  beadAt_.resize(beads);
  cellAt_.resize(beads);
  for (std::size_t bead = 0; bead < beads; ++bead) {
    const unsigned place = next[cell[bead] * typeCount_ + types_[bead]]++;
    beadAt_[place] = unsigned(bead);
    cellAt_[place] = cell[bead];
    positions_[place] = wrapped[bead];
    fractions_[place] = fraction[bead];
  }
}

void PairList::fill(unsigned index) {
  PairPart& part = parts_[index];
  part.rows.clear();
  part.neighbours.clear();
  const unsigned beads = unsigned(positions_.size()), stride = block * unsigned(parts_.size());
  for (unsigned start = block * index; start < beads; start += stride) {
    for (unsigned place = start; place < std::min(start + block, beads); ++place) {
      addNeighbours(place, part);
    }
  }
}

void PairList::addNeighbours(unsigned place, PairPart& part) const {
  struct Near { unsigned cell; int shift; };
  std::array<Near, 14> near;
  const int home = int(cellAt_[place]);
  const int at[3] = {home % cells_[0], home / cells_[0] % cells_[1], home / cells_[0] / cells_[1]};
  near[0] = {unsigned(home), noShift};
  for (std::size_t n = 0; n < halfStencil.size(); ++n) {
    int to[3], turn[3];
    for (int k = 0; k < 3; ++k) {
      to[k] = at[k] + halfStencil[n][k];
      turn[k] = to[k] < 0 ? -1 : to[k] >= cells_[k] ? 1 : 0;
      to[k] -= turn[k] * cells_[k];
    }
    near[n + 1] = {unsigned((to[2] * cells_[1] + to[1]) * cells_[0] + to[0]),
                   noShift + turn[0] + 3 * turn[1] + 9 * turn[2]};
  }
  const int own = types_[beadAt_[place]];
  for (int type = 0; type < typeCount_; ++type) {
    const int table = tableOf_[own * typeCount_ + type];
    if (table < 0) {
      continue;
    }
    for (std::size_t n = 0; n < near.size(); ++n) {
      const std::size_t run = std::size_t(near[n].cell) * typeCount_ + type;
      // Within its own cell a bead takes those behind it.
      const unsigned begin = n == 0 ? std::max(runStart_[run], place + 1) : runStart_[run];
      addRun(place, begin, runStart_[run + 1], table, near[n].shift, part);
    }
  }
}

/// Beads of one type in one cell; they lengthen the row before where that has the same table and shift.
void PairList::addRun(unsigned place, unsigned begin, unsigned end, int table, int shift, PairPart& part) const {
  if (begin >= end) {
    return;
  }
  const unsigned bead = beadAt_[place];
  const bool hasExclusions = exclusionStart_[bead] != exclusionStart_[bead + 1];
  const double reach2 = reach_ * reach_;
  const Vector from = positions_[place] - shifts_[shift];
  const std::size_t before = part.neighbours.size();
  part.neighbours.resize(before + (end - begin));
  unsigned* to = part.neighbours.data() + before;
  for (unsigned other = begin; other < end; ++other) {
    *to = other;
    const Vector d = positions_[other] - from;
    // Without a branch: which beads are near is as good as random.
    to += d.modulo2() < reach2;
  }
  if (hasExclusions) {
    unsigned* const first = part.neighbours.data() + before;
    to = std::remove_if(first, to, [&](unsigned other) { return isExcluded(bead, beadAt_[other]); });
  }
  const std::size_t after = std::size_t(to - part.neighbours.data());
  part.neighbours.resize(after);
  if (after == before) {
    return;
  }
  if (!part.rows.empty()) {
    PairRow& last = part.rows.back();
    if (last.bead == place && last.table == table && last.shift == shift) {
      last.end = unsigned(after);
      return;
    }
  }
  part.rows.push_back({place, unsigned(before), unsigned(after), table, shift});
}

bool PairList::isExcluded(unsigned a, unsigned b) const {
  const auto begin = exclusions_.begin() + exclusionStart_[a], end = exclusions_.begin() + exclusionStart_[a + 1];
  return std::binary_search(begin, end, b);
}

}
