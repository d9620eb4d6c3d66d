// PAIR_TABLE: the non-bonded pairs of a coarse model, from tables by bead type, as a bias.
#include "Backend.h"
#include "PairFile.h"
#include "PairList.h"
#include "PairSum.h"

#include "core/ActionAtomistic.h"
#include "core/ActionPilot.h"
#include "core/ActionRegister.h"
#include "core/ActionWithValue.h"
#include "tools/OpenMP.h"
#include "tools/Units.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <exception>
#include <memory>

namespace ccg {

//+PLUMEDOC CCG_BIAS PAIR_TABLE
/*
Sum of pair potentials between beads, each a cubic spline that depends on the two beads' types.

The energy acts on the system as component bias, with its virial. The table file says for which units, numbers of beads
and temperature it was made, and the input line is checked against it. Pairs come from a Verlet list over cells, rebuilt
when beads have moved more than half of BUFFER.

\plumedfile
LOAD FILE=libccg_torch_model.so
pairs: PAIR_TABLE ATOMS=1-1200 FILE=pairs.tables TYPES=beads.types EXCLUSIONS=beads.exclusions TEMP=300
PRINT ARG=pairs.bias FILE=COLVAR STRIDE=100
\endplumedfile
*/
//+ENDPLUMEDOC

class PairTable :
  public PLMD::ActionAtomistic,
  public PLMD::ActionPilot,
  public PLMD::ActionWithValue {
public:
  explicit PairTable(const PLMD::ActionOptions&);
  static void registerKeywords(PLMD::Keywords& keys);
  unsigned getNumberOfDerivatives() override { return 3 * getNumberOfAtoms() + 9; }
  void calculate() override;
  void apply() override;

private:
  void readFiles(const std::string& file, const std::string& typesFile, const std::string& exclusionsFile,
                 double buffer, unsigned threads);
  void checkContract(const PairTables& tables, const std::vector<int>& types);
  void checkUnit(const std::string& unit, double found, const std::string& base);
  void checkBox(const PLMD::Tensor& box);
  void checkFinite(double energy) const;
  [[noreturn]] void stop(const std::string& what) const;

  bool pbc_ = true;
  double cutoff_ = 0.0;
  std::unique_ptr<PairList> list_;
  std::unique_ptr<PairSum> sum_;
  PLMD::Tensor checkedBox_;
  std::vector<double> gradient_;  // by atom, then the virial
};

PLUMED_REGISTER_ACTION(PairTable, "PAIR_TABLE")

void PairTable::registerKeywords(PLMD::Keywords& keys) {
  Action::registerKeywords(keys);
  PLMD::ActionAtomistic::registerKeywords(keys);
  PLMD::ActionPilot::registerKeywords(keys);
  PLMD::ActionWithValue::registerKeywords(keys);
  keys.add("compulsory", "STRIDE", "1", "the frequency with which the forces are calculated, that many times as strong");
  keys.add("atoms", "ATOMS", "all beads");
  keys.add("compulsory", "FILE", "the table file");
  keys.add("optional", "TYPES", "file with lines FIRST LAST TYPE (positions in ATOMS); not needed with a single type");
  keys.add("optional", "EXCLUSIONS", "file with lines BEAD BEAD (positions in ATOMS): pairs that do not interact");
  keys.add("optional", "BUFFER", "the list holds pairs up to this much beyond the cut-off; 0.1 nm if absent");
  keys.add("optional", "THREADS", "number of OpenMP threads; PLUMED_NUM_THREADS, else one, if absent");
  keys.add("optional", "TEMP", "the temperature in K, checked against the tables'; the MD engine's if absent");
  keys.addFlag("NOPBC", false, "no periodic images");
  keys.addOutputComponent("bias", "default", "the energy");
}

PairTable::PairTable(const PLMD::ActionOptions& ao)
  : Action(ao), ActionAtomistic(ao), ActionPilot(ao), ActionWithValue(ao) {
  std::vector<PLMD::AtomNumber> atoms;
  parseAtomList("ATOMS", atoms);
  std::string file, typesFile, exclusionsFile;
  parse("FILE", file);
  parse("TYPES", typesFile);
  parse("EXCLUSIONS", exclusionsFile);
  double buffer = 0.1 / getUnits().getLength();
  parse("BUFFER", buffer);
  unsigned threads = PLMD::OpenMP::getNumThreads();
  parse("THREADS", threads);
  bool noPbc = false;
  parseFlag("NOPBC", noPbc);
  pbc_ = !noPbc;
  if (atoms.empty()) {
    error("ATOMS names no beads");
  }
  if (!(buffer > 0.0) || threads < 1) {
    error("BUFFER and THREADS must be positive");
  }
  requestAtoms(atoms);
  readFiles(file, typesFile, exclusionsFile, buffer, threads);
  checkRead();
  addComponentWithDerivatives("bias");
  componentIsNotPeriodic("bias");
  gradient_.resize(getNumberOfDerivatives());
  log.printf("  %u beads, pair tables of %s, cut-off %g, list buffer %g, %u threads\n", getNumberOfAtoms(), file.c_str(),
             cutoff_, std::min(buffer, cutoff_), threads);
}

void PairTable::readFiles(const std::string& file, const std::string& typesFile, const std::string& exclusionsFile,
                          double buffer, unsigned threads) {
  try {
    PairTables tables = readPairTables(file);
    const std::size_t beads = getNumberOfAtoms();
    if (typesFile.empty() && tables.types.size() > 1) {
      throw std::runtime_error("TYPES is needed: " + file + " has " + std::to_string(tables.types.size()) + " types");
    }
    std::vector<int> types(beads, 0);
    if (!typesFile.empty()) {
      types = readBeadTypes(typesFile, beads, tables.types);
    }
    checkContract(tables, types);
    std::vector<std::pair<unsigned, unsigned>> excluded;
    if (!exclusionsFile.empty()) {
      excluded = readExclusions(exclusionsFile, beads);
    }
    cutoff_ = tables.cutoff();
    list_ = std::make_unique<PairList>(std::move(types), int(tables.types.size()), std::move(tables.index), excluded,
                                       cutoff_, std::min(buffer, cutoff_), threads);
    sum_ = std::make_unique<PairSum>(std::move(tables.splines), beads);
  } catch (const std::exception& problem) {
    error(problem.what());
  }
}

/// What the tables were made for against what the input line and the MD engine say.
void PairTable::checkContract(const PairTables& tables, const std::vector<int>& types) {
  checkUnit(tables.lengthUnit, getUnits().getLength(), "nm");
  checkUnit(tables.energyUnit, getUnits().getEnergy(), "kJ/mol");
  if (tables.beads() != types.size()) {
    throw std::runtime_error("number of beads: the tables are for " + std::to_string(tables.beads()) + ", ATOMS has " +
                             std::to_string(types.size()));
  }
  for (std::size_t k = 0; k < tables.types.size(); ++k) {
    const std::size_t found = std::size_t(std::count(types.begin(), types.end(), int(k)));
    if (found != tables.beadsOfType[k]) {
      throw std::runtime_error("beads of type " + tables.types[k] + ": the tables are for " +
                               std::to_string(tables.beadsOfType[k]) + ", TYPES has " + std::to_string(found));
    }
  }
  const double given = getkBT() / getKBoltzmann();  // from TEMP, else from the engine, else 0
  if (tables.temperature > 0.0 && given > 0.0 && std::abs(tables.temperature - given) > 0.05) {
    throw std::runtime_error("temperature: the tables are for " + show(tables.temperature, 6) +
                             " K, the input line or the MD engine has " + show(given, 6) + " K");
  }
}

void PairTable::checkUnit(const std::string& unit, double found, const std::string& base) {
  if (unit != base || std::abs(found - 1.0) > 1e-6) {
    throw std::runtime_error("units: the tables are in " + unit + " where this action takes " + base +
                             ", PLUMED's UNITS are " + show(found) + " " + base);
  }
}

/// A bead must not feel two images of another.
void PairTable::checkBox(const PLMD::Tensor& box) {
  if (!std::memcmp(&box, &checkedBox_, sizeof box)) {
    return;
  }
  const PLMD::Vector width = widths(box);
  for (unsigned k = 0; k < 3; ++k) {
    if (!(width[k] >= 2.0 * cutoff_)) {
      stop("the box is " + show(width[k]) + " nm wide between two of its faces, the tables' cut-off of " +
           show(cutoff_) + " nm needs " + show(2.0 * cutoff_) + " nm");
    }
  }
  checkedBox_ = box;
}

void PairTable::calculate() {
  const PLMD::Tensor& box = getBox();
  const bool periodic = pbc_ && box.determinant() != 0.0;
  if (periodic) {
    checkBox(box);
  }
  try {
    list_->update(getPositions(), box, periodic);
  } catch (const std::exception& problem) {
    stop(problem.what());
  }
  const double energy = sum_->evaluate(*list_, gradient_);
  checkFinite(energy);
  PLMD::Value* value = getPntrToComponent(0);
  value->set(energy);
  // The forces of the bias itself go to the atoms directly in apply(); copies are for actions that ask for them.
  if (!doNotCalculateDerivatives()) {
    for (std::size_t i = 0; i < gradient_.size(); ++i) {
      value->setDerivative(i, gradient_[i]);
    }
  }
}

void PairTable::checkFinite(double energy) const {
  double sum = std::abs(energy);
  for (const double number : gradient_) {
    sum += std::abs(number);
  }
  if (std::isfinite(sum)) {
    return;
  }
  for (std::size_t i = 0; i < 3 * getNumberOfAtoms(); ++i) {
    if (!std::isfinite(gradient_[i])) {
      stop("the force on atom " + std::to_string(getAbsoluteIndex(int(i / 3)).serial()) +
           " is not finite: two beads at one place, or a run that has exploded");
    }
  }
  stop("the energy is " + show(energy));
}

/// End the run. Not by error(), which blames the input line.
void PairTable::stop(const std::string& what) const {
  plumed_merror("PAIR_TABLE " + getLabel() + ": " + what + " at step " + std::to_string(getStep()) + " (time " +
                show(getTime()) + ")");
}

void PairTable::apply() {
  PLMD::Value* value = getPntrToComponent(0);
  // On itself as a bias -1 times STRIDE, as PLUMED's own; plus what actions that take the energy as argument ask for.
  double factor = onStep() ? -double(getStride()) : 0.0;
  if (value->forcesWereAdded()) {
    factor += value->getForce();
  }
  if (factor == 0.0) {
    return;
  }
  for (double& number : gradient_) {
    number *= factor;
  }
  unsigned next = 0;
  setForcesOnAtoms(gradient_, next);
}

}
