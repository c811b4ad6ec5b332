// SPDX-License-Identifier: Apache-2.0
// Entry of the addon: makes the environment's data and lets each file export its calls.
#include "support.h"

namespace {

using devstate::AddonData;

void DeleteData(napi_env, void* data, void*) { delete static_cast<AddonData*>(data); }

/// A worker's loop may not end with open handles, so they are closed before it is torn down.
void OnEnvironmentEnd(napi_async_cleanup_hook_handle, void* data) {
  devstate::CloseAllPollers(static_cast<AddonData*>(data));
}

napi_value Init(napi_env env, napi_value exports) {
  auto* data = new AddonData;
  data->env = env;
  if (napi_set_instance_data(env, data, DeleteData, nullptr) != napi_ok ||
      napi_add_async_cleanup_hook(env, OnEnvironmentEnd, data, &data->cleanup) != napi_ok) {
    return devstate::Failed(env, "the addon's data cannot be kept");
  }
  devstate::InitAsync(env, exports);
  devstate::InitCounted(env, exports);
  devstate::InitCrc32c(env, exports);
  devstate::InitEvent(env, exports);
  devstate::InitFile(env, exports);
  devstate::InitMemory(env, exports, data);
  devstate::InitPath(env, exports);
  devstate::InitOutput(env, exports);
  devstate::InitPoll(env, exports, data);
  devstate::InitSocket(env, exports);
  devstate::InitVfio(env, exports);
  return exports;
}

}  // namespace

NAPI_MODULE(devstate, Init)
