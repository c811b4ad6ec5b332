// SPDX-License-Identifier: Apache-2.0
#include <napi.h>
static Napi::Object Init(Napi::Env env, Napi::Object exports) { return exports; }
NODE_API_MODULE(devstate, Init)
