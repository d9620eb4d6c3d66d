// TORCH_MODEL in a step: inputs, evaluation, checks, value with derivatives and virial, forces.
#include "TorchModel.h"

#include <cmath>
#include <exception>

namespace ccg {

unsigned TorchModel::getNumberOfDerivatives() {
  return nArg_ + (getNumberOfAtoms() > 0 ? 3 * getNumberOfAtoms() + 9 : 0);
}

bool TorchModel::onStep() const {
  return bias_ && ActionPilot::onStep();
}

void TorchModel::calculate() {
  gather();
  try {
    model_.backend->evaluate(input_.data(), values_.data(), gradient_.data());
  } catch (const std::exception& problem) {
    stop(firstLine(problem.what()));
  }
  checkFinite();
  checkVirial();
  publish();
}

void TorchModel::gather() {
  for (unsigned i = 0; i < nArg_; ++i) {
    input_[i] = getArgument(i);
  }
  if (getNumberOfAtoms() == 0) {
    return;
  }
  // This shifts PLUMED's own copy for this action alone; publishBox needs the same, whole positions.
  if (pbc_) {
    makeWhole();
  }
  double* to = input_.data() + nArg_;
  for (const PLMD::Vector& position : getPositions()) {
    for (unsigned k = 0; k < 3; ++k) {
      *to++ = position[k];
    }
  }
}

/// End the run. Not by error(), which blames the input line.
void TorchModel::stop(const std::string& what) const {
  const std::string where = " at step " + std::to_string(getStep()) + " (time " + show(getTime()) + ")";
  plumed_merror("TORCH_MODEL " + getLabel() + ": " + what + where + "; inputs " + inputsInWords());
}

/// GROMACS runs on silently with a NaN energy and dies of a segmentation fault with a NaN force.
void TorchModel::checkFinite() const {
  for (std::size_t k = 0; k < values_.size(); ++k) {
    if (!std::isfinite(values_[k])) {
      stop("output \"" + model_.contract.outputs[k].name + "\" is " + show(values_[k]));
    }
  }
  for (std::size_t i = 0; i < gradient_.size(); ++i) {
    if (!std::isfinite(gradient_[i])) {
      stop("the gradient of output \"" + model_.contract.outputs[i / input_.size()].name + "\" is " +
           show(gradient_[i]));
    }
  }
}

/// At every step, not only at the first: a model may be flat there and depend on the origin elsewhere.
void TorchModel::checkVirial() {
  if (getNumberOfAtoms() == 0) {
    return;
  }
  try {
    checkTranslation(model_.contract, gradient_, scale_);
  } catch (const std::exception& problem) {
    stop(firstLine(problem.what()));
  }
}

std::string TorchModel::inputsInWords() const {
  constexpr std::size_t most = 60;
  std::string out;
  for (std::size_t i = 0; i < input_.size() && i < most; ++i) {
    if (i < nArg_) {
      out += getPntrToArgument(i)->getName() + "=";
    } else if ((i - nArg_) % 3 == 0) {
      out += "atom " + std::to_string(getAbsoluteIndex((i - nArg_) / 3).serial()) + "=";
    }
    out += show(input_[i]) + (i + 1 < input_.size() ? " " : "");
  }
  return out + (input_.size() > most ? "..." : "");
}

void TorchModel::publish() {
  for (std::size_t k = 0; k < values_.size(); ++k) {
    PLMD::Value* value = getPntrToComponent(k);
    value->set(values_[k]);
    const double* row = gradient_.data() + k * input_.size();
    // set, not add: numerical derivatives call calculate() many times without clearing.
    for (std::size_t i = 0; i < input_.size(); ++i) {
      value->setDerivative(i, row[i]);
    }
    if (getNumberOfAtoms() > 0) {
      publishBox(value, row + nArg_);
    }
  }
}

/// Virial of a function of whole, relative positions: minus the sum of position times gradient. Independent of the
/// origin because the gradients sum to zero, which checkTranslation made sure of.
void TorchModel::publishBox(PLMD::Value* value, const double* row) {
  PLMD::Tensor virial;
  for (unsigned j = 0; j < getNumberOfAtoms(); ++j) {
    virial -= PLMD::Tensor(getPosition(j), PLMD::Vector(row[3 * j], row[3 * j + 1], row[3 * j + 2]));
  }
  const unsigned first = nArg_ + 3 * getNumberOfAtoms();
  for (unsigned a = 0; a < 9; ++a) {
    value->setDerivative(first + a, virial(a / 3, a % 3));
  }
}

void TorchModel::apply() {
  if (onStep()) {
    // The force of an energy on itself is -1; PLUMED's chain rule does the rest. STRIDE as in PLUMED's own biases.
    getPntrToComponent(0)->addForce(-static_cast<double>(getStride()));
  }
  if (!checkForForces()) {
    return;
  }
  unsigned next = 0;
  addForcesOnArguments(0, getForcesToApply(), next, getLabel());
  if (getNumberOfAtoms() > 0) {
    setForcesOnAtoms(getForcesToApply(), next);
  }
}

void TorchModel::calculateNumericalDerivatives(PLMD::ActionWithValue* a) {
  if (nArg_ > 0) {
    ActionWithArguments::calculateNumericalDerivatives(a);
  }
  if (getNumberOfAtoms() == 0) {
    return;
  }
  // The atoms' part clears all derivatives: keep those by the arguments.
  std::vector<std::vector<double>> byArgument;
  for (unsigned k = 0; k < values_.size(); ++k) {
    byArgument.emplace_back();
    for (unsigned i = 0; i < nArg_; ++i) {
      byArgument.back().push_back(getPntrToComponent(k)->getDerivative(i));
    }
  }
  calculateAtomicNumericalDerivatives(a, nArg_);
  for (unsigned k = 0; k < values_.size(); ++k) {
    for (unsigned i = 0; i < nArg_; ++i) {
      getPntrToComponent(k)->setDerivative(i, byArgument[k][i]);
    }
  }
}

/// For DUMPPROJECTIONS. PLUMED takes this action for one of atoms alone, because it is one of atoms too.
void TorchModel::setGradientsIfNeeded() {
  if (!isOptionOn("GRADIENTS")) {
    return;
  }
  if (nArg_ > 0 && getNumberOfAtoms() > 0) {
    error("projections of a model of both ARG and ATOMS are not implemented");
  }
  ActionWithValue::setGradientsIfNeeded();
  for (int k = 0; nArg_ > 0 && k < getNumberOfComponents(); ++k) {
    unsigned start = 0;
    ActionWithArguments::setGradients(getPntrToComponent(k), start);
  }
}

void TorchModel::lockRequests() {
  ActionAtomistic::lockRequests();
  ActionWithArguments::lockRequests();
}

void TorchModel::unlockRequests() {
  ActionAtomistic::unlockRequests();
  ActionWithArguments::unlockRequests();
}

}
