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
  double energy[batch], pull[batch];  // V and V'/r
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

  void evaluate(const PairSpline& spline) {
    const int last = int(spline.coefficients.size() / 4) - 1;
    const double* table = spline.coefficients.data();
    for (unsigned k = 0; k < count; ++k) {
      square[k] = std::sqrt(square[k]);
    }
    for (unsigned k = 0; k < count; ++k) {
      const double r = square[k], u = (r - spline.first) * spline.perLength;
      // Entry 0 is the straight line below the first node; rounding may put r at the cut-off one past the end.
      const int entry = u < 0.0 ? 0 : std::min(1 + int(u), last);
      const double t = u < 0.0 ? u : u - double(entry - 1);
      const double* c = table + 4 * entry;
      energy[k] = c[0] + t * (c[1] + t * (c[2] + t * c[3]));
      pull[k] = (c[1] + t * (2.0 * c[2] + t * 3.0 * c[3])) * spline.perLength / r;
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
    std::fill(part.virial, part.virial + 6, 0.0);
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
  double gx = 0.0, gy = 0.0, gz = 0.0;
  double* const gradient = part.gradient.data();
  Close close;
  for (unsigned begin = row.begin; begin < row.end; begin += batch) {
    close.collect(list.positions().data(), from, neighbours + begin, neighbours + std::min(begin + batch, row.end),
                  spline.cutoff * spline.cutoff);
    close.evaluate(spline);
    for (unsigned k = 0; k < close.count; ++k) {
      const double x = close.x[k], y = close.y[k], z = close.z[k];
      const double fx = close.pull[k] * x, fy = close.pull[k] * y, fz = close.pull[k] * z;
      double* const other = gradient + 3 * close.place[k];
      other[0] += fx;
      other[1] += fy;
      other[2] += fz;
      gx += fx;
      gy += fy;
      gz += fz;
      part.energy += close.energy[k];
      part.virial[0] -= x * fx;
      part.virial[1] -= y * fy;
      part.virial[2] -= z * fz;
      part.virial[3] -= x * fy;
      part.virial[4] -= x * fz;
      part.virial[5] -= y * fz;
    }
  }
  gradient[3 * row.bead] -= gx;
  gradient[3 * row.bead + 1] -= gy;
  gradient[3 * row.bead + 2] -= gz;
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
  double v[6] = {0, 0, 0, 0, 0, 0};
  for (const Part& part : parts_) {
    for (unsigned k = 0; k < 6; ++k) {
      v[k] += part.virial[k];
    }
  }
  const double full[9] = {v[0], v[3], v[4], v[3], v[1], v[5], v[4], v[5], v[2]};
  std::copy(full, full + 9, result.begin() + std::ptrdiff_t(3 * beads_));
}

}
