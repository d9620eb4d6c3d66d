// TorchScript: our own exports, and models of mlcolvar and of PYTORCH_MODEL's users, which have no contract.
#include "Backend.h"
#include "TorchGuard.h"

#include <torch/csrc/api/include/torch/version.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/script.h>

#include <algorithm>
#include <stdexcept>

namespace ccg {

namespace {

constexpr const char* kContractFile = "ccg_contract.json";
// The profiling executor compiles in the first calls, and again when it has seen their shapes.
constexpr int kWarmUp = 3;

/// What a model without a contract computes in. One with a contract says so: it may have no weights to tell by.
at::ScalarType typeOf(const torch::jit::Module& module) {
  for (const at::Tensor& tensor : module.parameters()) {
    return tensor.scalar_type();
  }
  for (const at::Tensor& tensor : module.buffers()) {
    if (at::isFloatingType(tensor.scalar_type())) {
      return tensor.scalar_type();
    }
  }
  return at::kFloat;
}

class ScriptBackend : public Backend {
public:
  ScriptBackend(const torch::jit::Module& module, unsigned nIn, bool gradientInGraph, at::ScalarType type)
    : module_(module), gradientInGraph_(gradientInGraph), type_(type) {
    module_.eval();
    if (module_.hasattr("training")) {  // else it is frozen already, and freezing twice is an error
      module_ = torch::jit::freeze(module_);
    }
    input_ = at::zeros({1, nIn}, type_);
    for (int i = 0; i < kWarmUp; ++i) {
      run(nullptr, nullptr);
    }
  }

  unsigned outputs() const {
    return nOut_;
  }

  void evaluate(const double* input, double* values, double* gradient) override {
    withTorch([&] {
      const at::NoGradGuard noGrad;  // the buffer itself is no part of any graph
      input_ = at::from_blob(const_cast<double*>(input), {1, input_.size(1)}, at::kDouble).to(type_, false, true);
      run(values, gradient);
    });
  }

private:
  /// Null pointers: for the number of outputs alone.
  void run(double* values, double* gradient) {
    if (gradientInGraph_) {
      runGraph(values, gradient);
    } else {
      runAutograd(values, gradient);
    }
  }

  void runGraph(double* values, double* gradient) {
    const at::NoGradGuard noGrad;
    const auto out = module_.forward({input_}).toTuple();
    if (out->elements().size() != 2) {
      throw std::runtime_error("the model returns no pair of values and gradient");
    }
    const at::Tensor value = out->elements()[0].toTensor();
    nOut_ = value.numel();
    if (values) {
      copy(value, values, nOut_);
      copy(out->elements()[1].toTensor(), gradient, static_cast<std::int64_t>(nOut_) * input_.size(1));
    }
  }

  void runAutograd(double* values, double* gradient) {
    const at::AutoGradMode withGrad(true);
    const at::Tensor x = input_.detach().requires_grad_(true);
    const at::Tensor value = module_.forward({x}).toTensor().flatten();
    nOut_ = value.numel();
    if (!values) {
      return;
    }
    copy(value, values, nOut_);
    for (unsigned k = 0; k < nOut_; ++k) {
      const bool keep = k + 1 < nOut_;
      const auto row = torch::autograd::grad({value[k]}, {x}, {}, keep, false, true)[0];
      // A component that does not depend on the inputs has no gradient at all, which is zero.
      const std::int64_t n = x.size(1);
      copy(row.defined() ? row : at::zeros_like(x), gradient + k * n, n);
    }
  }

  static void copy(const at::Tensor& tensor, double* to, std::int64_t size) {
    if (tensor.numel() != size) {
      throw std::runtime_error("the model returned " + std::to_string(tensor.numel()) + " numbers, expected " +
                               std::to_string(size));
    }
    const at::Tensor whole = tensor.detach().to(at::kDouble).contiguous();
    const double* from = whole.const_data_ptr<double>();
    std::copy(from, from + size, to);
  }

  torch::jit::Module module_;
  bool gradientInGraph_;
  at::ScalarType type_;
  at::Tensor input_;
  unsigned nOut_ = 0;
};

/// What can be said of a model that says nothing itself: nothing is known of its outputs but their number.
Contract guessed(unsigned arguments, unsigned atoms) {
  Contract out;
  out.backend = "torchscript";
  out.arguments.resize(arguments);
  out.atoms = atoms;
  out.gradientInGraph = false;
  return out;
}

void nameOutputs(Contract& contract, unsigned count) {
  for (unsigned k = 0; k < count; ++k) {
    Quantity output;
    output.name = "node-" + std::to_string(k);  // PYTORCH_MODEL's names, so that its input files go on working
    contract.outputs.push_back(output);
  }
}

}

Model openScript(const std::string& path, unsigned arguments, unsigned atoms) {
  return withTorch([&] {
    torch::jit::ExtraFilesMap extra{{kContractFile, ""}};
    const torch::jit::Module module = torch::jit::load(path, c10::kCPU, extra);
    Model model;
    model.hasContract = !extra[kContractFile].empty();
    model.contract = model.hasContract ? Contract::fromJson(Json::parse(extra[kContractFile]))
                     : guessed(arguments, atoms);
    if (model.contract.backend != "torchscript") {
      throw std::runtime_error("the contract is one for \"" + model.contract.backend + "\", found TorchScript");
    }
    if (!model.hasContract) {
      model.contract.dtype = typeOf(module) == at::kDouble ? "float64" : "float32";
    }
    const at::ScalarType type = model.contract.dtype == "float64" ? at::kDouble : at::kFloat;
    auto backend =
      std::make_unique<ScriptBackend>(module, model.contract.inputs(), model.contract.gradientInGraph, type);
    if (!model.hasContract) {
      nameOutputs(model.contract, backend->outputs());
    } else if (backend->outputs() != model.contract.outputs.size()) {
      throw std::runtime_error("the model has " + std::to_string(backend->outputs()) + " outputs, its contract " +
                               std::to_string(model.contract.outputs.size()));
    }
    model.backend = std::move(backend);
    model.description = "TorchScript, " + model.contract.dtype + ", libtorch " TORCH_VERSION;
    return model;
  });
}

}
