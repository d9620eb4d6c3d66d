// TORCH_MODEL: a learned function of arguments and atom positions, as collective variables or as a bias.
#include "Backend.h"
#include "ContractCheck.h"

#include "core/ActionAtomistic.h"
#include "core/ActionPilot.h"
#include "core/ActionRegister.h"
#include "core/ActionWithArguments.h"
#include "core/ActionWithValue.h"
#include "tools/Tools.h"
#include "tools/Units.h"

#include <cmath>
#include <exception>

namespace ccg {

//+PLUMEDOC CCG_COLVAR TORCH_MODEL
/*
Value and gradient of a trained model: a perceptron (.json), an AOTInductor package (.pt2) or TorchScript.

The file says what it needs (its contract), and the input line is checked against it. The gradient comes from the
exported graph. Without BIAS the outputs are components with the names of the contract; with BIAS the one output is an
energy that acts on the system, and STRIDE applies it every so many steps, that many times as strong.

\plumedfile
LOAD FILE=libccg_torch_model.so
phi: TORSION ATOMS=5,7,9,15
psi: TORSION ATOMS=7,9,15,17
b: TORCH_MODEL FILE=surface.json ARG=phi,psi BIAS TEMP=300
PRINT ARG=phi,psi,b.bias FILE=COLVAR STRIDE=100
\endplumedfile
*/
//+ENDPLUMEDOC

class TorchModel :
  public PLMD::ActionAtomistic,
  public PLMD::ActionWithArguments,
  public PLMD::ActionPilot,
  public PLMD::ActionWithValue {
public:
  explicit TorchModel(const PLMD::ActionOptions&);
  static void registerKeywords(PLMD::Keywords& keys);
  unsigned getNumberOfDerivatives() override;
  /// A bias drives itself; as a collective variable the action waits until somebody asks.
  bool onStep() const override;
  void calculate() override;
  void apply() override;
  void calculateNumericalDerivatives(PLMD::ActionWithValue* a = nullptr) override;
  void setGradientsIfNeeded() override;
  void lockRequests() override;
  void unlockRequests() override;

private:
  void readModel(const std::string& file);
  InputLine inputLine(const std::vector<PLMD::AtomNumber>& atoms, bool anyNames);
  void addOutputs();
  void report(const std::string& file);
  void gather();
  [[noreturn]] void stop(const std::string& what) const;
  void checkFinite() const;
  void publish();
  void publishBox(PLMD::Value* value, const double* row);
  std::string inputsInWords() const;

  Model model_;
  bool bias_ = false;
  bool pbc_ = true;
  bool translationChecked_ = false;
  unsigned nArg_ = 0;
  std::vector<double> input_, values_, gradient_;
};

namespace {

/// PLUMED reads ends of domains from text: with all digits, and pi by its name, so that grids of others fit.
std::string domainEnd(double end) {
  const double pi = std::acos(-1.0);
  if (std::abs(std::abs(end) - pi) < 1e-12) {
    return end < 0 ? "-pi" : "pi";
  }
  return show(end, 17);
}

}

PLUMED_REGISTER_ACTION(TorchModel, "TORCH_MODEL")

void TorchModel::registerKeywords(PLMD::Keywords& keys) {
  Action::registerKeywords(keys);
  PLMD::ActionAtomistic::registerKeywords(keys);
  PLMD::ActionWithArguments::registerKeywords(keys);
  PLMD::ActionPilot::registerKeywords(keys);
  PLMD::ActionWithValue::registerKeywords(keys);
  keys.use("ARG");
  keys.add("compulsory", "STRIDE", "1", "with BIAS: the frequency with which the forces are calculated");
  keys.add("atoms", "ATOMS", "the atoms whose positions the model takes, neighbours in one molecule next to each other");
  keys.add("compulsory", "FILE", "the model: .json (perceptron), .pt2 (AOTInductor) or TorchScript");
  keys.add("optional", "TEMP", "the temperature in K, checked against the contract's; the MD engine's if absent");
  keys.addFlag("BIAS", false, "the output is an energy: apply its forces");
  keys.addFlag("NOPBC", false, "take the positions as they are, without making the molecule whole");
  keys.addFlag("ANY_NAMES", false, "the labels in ARG may differ from the names in the contract");
  keys.addOutputComponent("bias", "BIAS", "the energy");
  useCustomisableComponents(keys);  // named by the model's contract
}

TorchModel::TorchModel(const PLMD::ActionOptions& ao)
  : Action(ao), ActionAtomistic(ao), ActionWithArguments(ao), ActionPilot(ao), ActionWithValue(ao) {
  std::string file;
  parse("FILE", file);
  std::vector<PLMD::AtomNumber> atoms;
  parseAtomList("ATOMS", atoms);
  bool noPbc = false, anyNames = false;
  parseFlag("NOPBC", noPbc);
  parseFlag("ANY_NAMES", anyNames);
  parseFlag("BIAS", bias_);
  pbc_ = !noPbc;
  if (getStride() != 1 && !bias_) {
    error("STRIDE is the stride of a bias's forces: it needs BIAS");
  }
  nArg_ = getNumberOfArguments();
  if (!atoms.empty()) {
    requestAtoms(atoms, false);  // false: the dependencies on the arguments stay
  }
  const InputLine line = inputLine(atoms, anyNames);
  checkRead();
  readModel(file);
  if (!model_.hasContract && bias_) {
    error("model " + file + " has no contract, so that nothing says that its output is an energy: use it without BIAS, "
          "and BIASVALUE on its component");
  }
  if (model_.hasContract) {
    try {
      checkContract(model_.contract, line);
    } catch (const std::exception& problem) {
      error("model " + file + " does not fit, " + problem.what());
    }
  }
  addOutputs();
  report(file);
}

/// Open, evaluate the trials, and make room.
void TorchModel::readModel(const std::string& file) {
  try {
    model_ = openModel(file, nArg_, getNumberOfAtoms());
    runTrials(*model_.backend, model_.contract);
  } catch (const std::exception& problem) {
    error("model " + file + ": " + firstLine(problem.what()));
  }
  const Contract& contract = model_.contract;
  input_.resize(contract.inputs());
  values_.resize(contract.outputs.size());
  gradient_.resize(contract.outputs.size() * contract.inputs());
  if (checkNumericalDerivatives() && contract.dtype != "float64") {
    error("NUMERICAL_DERIVATIVES of a float32 model are noise: export model " + file + " in float64");
  }
}

InputLine TorchModel::inputLine(const std::vector<PLMD::AtomNumber>& atoms, bool anyNames) {
  InputLine line;
  for (unsigned i = 0; i < nArg_; ++i) {
    PLMD::Value* value = getPntrToArgument(i);
    if (value->getRank() != 0) {
      error("argument " + value->getName() + " is no single number");
    }
    Quantity quantity;
    quantity.name = value->getName();
    quantity.periodic = value->isPeriodic();
    if (quantity.periodic) {
      value->getDomain(quantity.low, quantity.high);
    }
    line.arguments.push_back(quantity);
  }
  for (const PLMD::AtomNumber& atom : atoms) {
    line.serials.push_back(atom.serial());
  }
  line.lengthUnit = getUnits().getLength();
  line.energyUnit = getUnits().getEnergy();
  line.timeUnit = getUnits().getTime();
  line.temperature = getkBT() / getKBoltzmann();  // from TEMP, else from the engine, else 0
  line.anyNames = anyNames;
  line.bias = bias_;
  return line;
}

void TorchModel::addOutputs() {
  for (const Quantity& output : model_.contract.outputs) {
    // PLUMED adds components called "bias" to the bias that it reports, so only a real one may have this name.
    if (!bias_ && (output.name == "bias" || output.name == "work")) {
      error("output \"" + output.name + "\" has a name that PLUMED reserves for biases: add BIAS, or export the model "
            "with another name");
    }
    const std::string name = bias_ ? "bias" : output.name;
    addComponentWithDerivatives(name);
    // A value has room for derivatives only once somebody asks for them; publish() writes them always.
    getPntrToComponent(name)->resizeDerivatives(getNumberOfDerivatives());
    if (output.periodic) {
      componentIsPeriodic(name, domainEnd(output.low), domainEnd(output.high));
    } else {
      componentIsNotPeriodic(name);
    }
  }
  if (bias_) {
    turnOnDerivatives();
  }
}

void TorchModel::report(const std::string& file) {
  const Contract& contract = model_.contract;
  log.printf("  model %s: %s\n", file.c_str(), model_.description.c_str());
  log.printf("  %u arguments, %u atoms, %u outputs\n", nArg_, contract.atoms, static_cast<unsigned>(values_.size()));
  if (!model_.hasContract) {
    warning("model " + file + " has no contract: its units, names and temperature could not be checked");
  }
  log.printf("  %u trial inputs agree with torch\n", static_cast<unsigned>(contract.trials.size()));
  if (contract.atoms > 0) {
    log.printf(pbc_ ? "  atoms are made whole, each beside the one before it\n" : "  without periodic boundaries\n");
  }
  for (const std::string& reference : contract.references) {
    log << "  Bibliography " << cite(reference) << "\n";
  }
}

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
  if (!translationChecked_ && getNumberOfAtoms() > 0) {
    // At the first real frame: a made-up one could be where the model is flat.
    try {
      checkTranslation(model_.contract, gradient_);
    } catch (const std::exception& problem) {
      stop(firstLine(problem.what()));
    }
    translationChecked_ = true;
  }
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
  std::vector<std::vector<double>> byArgument;
  if (nArg_ > 0) {
    ActionWithArguments::calculateNumericalDerivatives(a);
  }
  if (getNumberOfAtoms() == 0) {
    return;
  }
  // The atoms' part clears all derivatives: keep those by the arguments.
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
