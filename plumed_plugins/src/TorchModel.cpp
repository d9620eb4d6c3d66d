// TORCH_MODEL: a learned function of arguments and atom positions, as collective variables or as a bias. Its set-up.
#include "TorchModel.h"

#include "core/ActionRegister.h"
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
  const InputLine given = inputLine(atoms, anyNames);
  checkRead();
  readModel(file);
  if (!model_.hasContract && bias_) {
    error("model " + file + " has no contract, so that nothing says that its output is an energy: use it without BIAS, "
          "and BIASVALUE on its component");
  }
  if (model_.hasContract) {
    try {
      checkContract(model_.contract, given);
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
  scale_.assign(contract.outputs.size(), 0.0);
  if (checkNumericalDerivatives() && contract.dtype != "float64") {
    error("NUMERICAL_DERIVATIVES of a float32 model are noise: export model " + file + " in float64");
  }
}

InputLine TorchModel::inputLine(const std::vector<PLMD::AtomNumber>& atoms, bool anyNames) {
  InputLine given;
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
    given.arguments.push_back(quantity);
  }
  for (const PLMD::AtomNumber& atom : atoms) {
    given.serials.push_back(atom.serial());
  }
  given.lengthUnit = getUnits().getLength();
  given.energyUnit = getUnits().getEnergy();
  given.timeUnit = getUnits().getTime();
  given.temperature = getkBT() / getKBoltzmann();  // from TEMP, else from the engine, else 0
  given.anyNames = anyNames;
  given.bias = bias_;
  return given;
}

void TorchModel::addOutputs() {
  for (const Quantity& output : model_.contract.outputs) {
    // PLUMED adds components called "bias" to the bias that it reports, so only a real one may have this name.
    if (!bias_ && (output.name == "bias" || output.name == "work")) {
      error("output \"" + output.name + "\" has a name that PLUMED reserves for biases: add BIAS, or export the model "
            "with another name");
    }
    const std::string component = bias_ ? "bias" : output.name;
    addComponentWithDerivatives(component);
    // A value has room for derivatives only once somebody asks for them; publish() writes them always.
    getPntrToComponent(component)->resizeDerivatives(getNumberOfDerivatives());
    if (output.periodic) {
      componentIsPeriodic(component, domainEnd(output.low), domainEnd(output.high));
    } else {
      componentIsNotPeriodic(component);
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

}
