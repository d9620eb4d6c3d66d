// The action TORCH_MODEL: set up in TorchModel.cpp, evaluated and applied in TorchModelStep.cpp.
#ifndef CCG_TORCH_MODEL_H
#define CCG_TORCH_MODEL_H

#include "Backend.h"
#include "ContractCheck.h"

#include "core/ActionAtomistic.h"
#include "core/ActionPilot.h"
#include "core/ActionWithArguments.h"
#include "core/ActionWithValue.h"

#include <string>
#include <vector>

namespace ccg {

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
  // set-up, TorchModel.cpp
  void readModel(const std::string& file);
  InputLine inputLine(const std::vector<PLMD::AtomNumber>& atoms, bool anyNames);
  void addOutputs();
  void report(const std::string& file);

  // every step, TorchModelStep.cpp
  void gather();
  [[noreturn]] void stop(const std::string& what) const;
  void checkFinite() const;
  void checkVirial();
  void publish();
  void publishBox(PLMD::Value* value, const double* row);
  std::string inputsInWords() const;

  Model model_;
  bool bias_ = false;
  bool pbc_ = true;
  unsigned nArg_ = 0;
  std::vector<double> input_, values_, gradient_;
  std::vector<double> scale_;  // of each output: the largest derivative by a position so far
};

}

#endif
