#include "Contract.h"

#include <stdexcept>

namespace ccg {

namespace {

constexpr const char* kFormat = "ccg_torch_model";
constexpr unsigned kVersion = 1;

void refuse(const std::string& what) {
  throw std::runtime_error(what);
}

Quantity quantity(const Json& json) {
  Quantity out;
  out.name = json.at("name").string();
  if (const Json* unit = json.find("unit")) {
    out.unit = unit->string();
  }
  if (const Json* domain = json.find("periodic")) {
    const std::vector<double> ends = domain->numbers();
    if (ends.size() != 2 || !(ends[0] < ends[1])) {
      refuse("the domain of \"" + out.name + "\" is not two rising numbers");
    }
    out.periodic = true;
    out.low = ends[0];
    out.high = ends[1];
  }
  return out;
}

std::vector<Quantity> quantities(const Json& json) {
  std::vector<Quantity> out;
  for (const Json& item : json.array()) {
    out.push_back(quantity(item));
  }
  return out;
}

std::vector<std::string> words(const Json* json) {
  std::vector<std::string> out;
  if (json) {
    for (const Json& item : json->array()) {
      out.push_back(item.string());
    }
  }
  return out;
}

void readAtoms(const Json& json, Contract& out) {
  out.atoms = json.at("count").count();
  out.lengthUnit = json.at("unit").string();
  if (const Json* serials = json.find("serials")) {
    for (const Json& item : serials->array()) {
      out.serials.push_back(item.count());
    }
    if (out.serials.size() != out.atoms) {
      refuse("the contract names " + std::to_string(out.serials.size()) + " atoms and counts " +
             std::to_string(out.atoms));
    }
  }
}

std::vector<Trial> readTrials(const Json* json, std::size_t inputs, std::size_t outputs) {
  std::vector<Trial> out;
  if (json) {
    for (const Json& item : json->array()) {
      out.push_back({item.at("input").numbers(), item.at("values").numbers(), item.at("gradient").numbers()});
      const Trial& trial = out.back();
      if (trial.input.size() != inputs || trial.values.size() != outputs ||
          trial.gradient.size() != inputs * outputs) {
        refuse("a trial of the contract has the wrong size");
      }
    }
  }
  return out;
}

void checkVersion(const Json& json) {
  const std::string format = json.at("format").string();
  if (format != kFormat) {
    refuse("format \"" + format + "\", expected \"" + kFormat + "\"");
  }
  const unsigned version = json.at("version").count();
  if (version != kVersion) {
    refuse("contract version " + std::to_string(version) + ", this plug-in reads version " +
           std::to_string(kVersion) + "; export the model again, or rebuild with `ccg plumed build`");
  }
}

}

Contract Contract::fromJson(const Json& json) {
  checkVersion(json);
  Contract out;
  out.backend = json.at("backend").string();
  out.dtype = json.at("dtype").string();
  if (out.dtype != "float32" && out.dtype != "float64") {
    refuse("dtype \"" + out.dtype + "\", expected float32 or float64");
  }
  out.arguments = quantities(json.at("arguments"));
  out.outputs = quantities(json.at("outputs"));
  if (const Json* atoms = json.find("atoms")) {
    readAtoms(*atoms, out);
  }
  // Twice in the file on purpose: fused code reads past a buffer that is too short, so nothing may disagree here.
  if (json.at("n_in").count() != out.inputs()) {
    refuse("n_in " + std::to_string(json.at("n_in").count()) + ", but the inputs listed make " +
           std::to_string(out.inputs()));
  }
  if (out.inputs() == 0 || out.outputs.empty()) {
    refuse("a model without inputs or without outputs");
  }
  if (const Json* temperature = json.find("temperature_K")) {
    out.temperature = temperature->number();
  }
  if (const Json* graph = json.find("gradient_in_graph")) {
    out.gradientInGraph = graph->boolean();
  }
  out.cpu = words(json.find("cpu"));
  out.references = words(json.find("references"));
  out.trials = readTrials(json.find("trials"), out.inputs(), out.outputs.size());
  return out;
}

}
