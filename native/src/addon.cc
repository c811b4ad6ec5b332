// SPDX-License-Identifier: Apache-2.0
// Entry of the addon: makes the environment's data and lets each file export its calls.
#include "support.h"

namespace {

using devstate::AddonData;

/// A worker's loop may not end with open handles, so they are closed before it is torn down.
void OnEnvironmentEnd(napi_async_cleanup_hook_handle, void* data) {
  devstate::CloseAllPollers(static_cast<AddonData*>(data));
}

Napi::Object Init(Napi::Env env, Napi::Object exports) {
  auto data = std::make_unique<AddonData>();
  AddonData* kept = data.get();
  devstate::Check(env, napi_set_instance_data(
                 env, kept, [](napi_env, void* one, void*) { delete static_cast<AddonData*>(one); }, nullptr));
  data.release();
  devstate::Check(env, napi_add_async_cleanup_hook(env, OnEnvironmentEnd, kept, &kept->cleanup));
  devstate::InitAsync(exports);
  devstate::InitCounted(exports);
  devstate::InitCrc32c(exports);
  devstate::InitEvent(exports);
  devstate::InitFile(exports);
  devstate::InitMemory(exports);
  devstate::InitPath(exports);
  devstate::InitOutput(exports);
  devstate::InitPoll(exports);
  devstate::InitSocket(exports);
  devstate::InitVfio(exports);
  return exports;
}

}  // namespace

NODE_API_MODULE(devstate, Init)
