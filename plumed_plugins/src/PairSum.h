// Energy, gradient and virial of all pairs of a list.
#ifndef CCG_PAIR_SUM_H
#define CCG_PAIR_SUM_H

#include "PairFile.h"
#include "PairList.h"

#include <vector>

namespace ccg {

class PairSum {
public:
  PairSum(std::vector<PairSpline> splines, std::size_t beads) : splines_(std::move(splines)), beads_(beads) {}

  /// @param result [3 * beads + 9] gradient by bead, then the virial, minus the sum of distance times gradient, row by
  ///   row; scaled by -1 that is what PLUMED takes as forces on atoms and box.
  /// @return the energy.
  double evaluate(const PairList& list, std::vector<double>& result);

private:
  /// What one thread adds up; gradient by place.
  struct Part {
    std::vector<double> gradient;
    double energy = 0.0;
    PLMD::Tensor virial;  // what the shifts of rows add to it
  };

  void addRow(const PairList& list, const PairRow& row, const unsigned* neighbours, Part& part) const;
  void gather(const PairList& list, std::vector<double>& result) const;

  std::vector<PairSpline> splines_;
  std::size_t beads_;
  std::vector<Part> parts_;
};

}

#endif
