#include "PairSum.h"

#include <algorithm>
#include <cmath>

namespace ccg {

namespace {

/// Neighbours handled at once; what lies between the loops stays in the first-level cache.
constexpr unsigned batch = 128;

/// The pairs of a row that are closer than the cut-off.
struct Close {
  unsigned place[batch];
  double x[batch], y[batch], z[batch], square[batch];
  double t[batch], scale[batch];  // place within the interval; intervals per length, over r
  int entry[batch];               // of the table
  unsigned count = 0;

  void collect(const PLMD::Vector* positions, const PLMD::Vector& from, const unsigned* begin, const unsigned* end,
               double cutoff2) {
    count = 0;
    for (const unsigned* other = begin; other != end; ++other) {
      const PLMD::Vector& at = positions[*other];
      const double dx = at[0] - from[0], dy = at[1] - from[1], dz = at[2] - from[2];
      const double r2 = dx * dx + dy * dy + dz * dz;
      place[count] = *other;
      x[count] = dx;
      y[count] = dy;
      z[count] = dz;
      square[count] = r2;
      // Without a branch: a third of a list is beyond the cut-off, in no order.
      count += r2 < cutoff2;
    }
  }

  /// Without branches and calls, so that compilers make vectors of it: roots and divisions take most of the time.
  void locate(const PairSpline& spline) {
    const double first = spline.first, perLength = spline.perLength;
    for (unsigned k = 0; k < count; ++k) {
      const double r = std::sqrt(square[k]), u = (r - first) * perLength;
      // Entry 0 is the straight line below the first node, entry 1 the first interval.
      entry[k] = int(std::max(u + 1.0, 0.0));
      t[k] = u - std::max(double(entry[k]) - 1.0, 0.0);
      scale[k] = perLength / r;
    }
  }
};

}

double PairSum::evaluate(const PairList& list, std::vector<double>& result) {
  const std::vector<PairPart>& lists = list.parts();
  parts_.resize(lists.size());
#pragma omp parallel for schedule(static, 1) num_threads(lists.size())
  for (std::size_t p = 0; p < lists.size(); ++p) {
    Part& part = parts_[p];
    part.gradient.assign(3 * beads_, 0.0);
    part.energy = 0.0;
    part.virial.zero();
    for (const PairRow& row : lists[p].rows) {
      addRow(list, row, lists[p].neighbours.data(), part);
    }
  }
  gather(list, result);
  double energy = 0.0;
  for (const Part& part : parts_) {
    energy += part.energy;
  }
  return energy;
}

void PairSum::addRow(const PairList& list, const PairRow& row, const unsigned* neighbours, Part& part) const {
  const PairSpline& spline = splines_[row.table];
  const PLMD::Vector from = list.positions()[row.bead] - list.shift(row.shift);
  const double* const table = spline.coefficients.data();
  double* const gradient = part.gradient.data();
  // Local sums: in memory that might overlap with the gradient, each addition would wait for the one before.
  double gx = 0.0, gy = 0.0, gz = 0.0, energy = 0.0;
  Close close;
  for (unsigned begin = row.begin; begin < row.end; begin += batch) {
    close.collect(list.positions().data(), from, neighbours + begin, neighbours + std::min(begin + batch, row.end),
                  spline.cutoff * spline.cutoff);
    close.locate(spline);
    for (unsigned k = 0; k < close.count; ++k) {
      const double t = close.t[k], *const c = table + 4 * close.entry[k];
      energy += c[0] + t * (c[1] + t * (c[2] + t * c[3]));
      const double pull = (c[1] + t * (2.0 * c[2] + t * 3.0 * c[3])) * close.scale[k];  // V' / r
      const double fx = pull * close.x[k], fy = pull * close.y[k], fz = pull * close.z[k];
      double* const other = gradient + 3 * close.place[k];
      other[0] += fx;
      other[1] += fy;
      other[2] += fz;
      gx += fx;
      gy += fy;
      gz += fz;
    }
  }
  double* const own = gradient + 3 * row.bead;
  own[0] -= gx;
  own[1] -= gy;
  own[2] -= gz;
  part.energy += energy;
  part.virial -= PLMD::Tensor(list.shift(row.shift), PLMD::Vector(gx, gy, gz));
}

/// Sum over threads, from places to beads.
void PairSum::gather(const PairList& list, std::vector<double>& result) const {
  const std::vector<unsigned>& beadAt = list.beadAt();
#pragma omp parallel for schedule(static) num_threads(parts_.size())
  for (std::size_t place = 0; place < beads_; ++place) {
    for (unsigned k = 0; k < 3; ++k) {
      double sum = 0.0;
      for (const Part& part : parts_) {
        sum += part.gradient[3 * place + k];
      }
      result[3 * beadAt[place] + k] = sum;
    }
  }
  // A pair's distance is a difference of positions and a shift, so the sum over pairs is one over beads and rows.
  PLMD::Tensor virial;
  for (const Part& part : parts_) {
    virial += part.virial;
  }
  for (std::size_t place = 0; place < beads_; ++place) {
    const double* gradient = result.data() + 3 * beadAt[place];
    virial -= PLMD::Tensor(list.positions()[place], PLMD::Vector(gradient[0], gradient[1], gradient[2]));
  }
  for (unsigned k = 0; k < 9; ++k) {
    result[3 * beads_ + k] = virial(k / 3, k % 3);
  }
}

}
