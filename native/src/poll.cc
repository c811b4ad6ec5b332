// SPDX-License-Identifier: Apache-2.0
// Readiness of a file descriptor on the event loop (uv_poll).
#include <uv.h>

#include <cerrno>

#include "support.h"

namespace devstate {

/// Lives from createPoller until its handle is closed and its JavaScript object is collected, whichever is later.
struct Poller {
  static constexpr napi_type_tag kTag = {0x6465767374617465, 0x706f6c6c65720001};
  AddonData* data = nullptr;
  uv_poll_t handle{};
  napi_ref self = nullptr;      ///< Strong while open, so that a watched fd keeps its callback.
  napi_ref callback = nullptr;
  Poller* previous = nullptr;
  Poller* next = nullptr;
  bool closing = false;
  bool closed = false;
  bool collected = false;
};

namespace {

void EndCleanup(AddonData* data) {
  if (napi_remove_async_cleanup_hook(data->cleanup) != napi_ok) Failed(data->env, "the end cannot be announced");
}

void Unlink(Poller* poller) {
  AddonData* data = poller->data;
  if (poller->previous != nullptr) poller->previous->next = poller->next;
  if (poller->next != nullptr) poller->next->previous = poller->previous;
  if (data->pollers == poller) data->pollers = poller->next;
  if (data->closing && data->pollers == nullptr) EndCleanup(data);
}

void OnClosed(uv_handle_t* handle) {
  auto* poller = static_cast<Poller*>(handle->data);
  // Unlinking the last poller of an ending environment runs OnCollected, which deletes a poller that is `closed`.
  bool collected = poller->collected;
  poller->closed = true;
  Unlink(poller);
  if (collected) delete poller;
}

void Close(Poller* poller) {
  if (poller->closing) return;
  poller->closing = true;
  napi_env env = poller->data->env;
  if (poller->callback != nullptr) DeleteReference(env, poller->callback);
  if (poller->self != nullptr) DeleteReference(env, poller->self);
  poller->callback = poller->self = nullptr;
  uv_close(reinterpret_cast<uv_handle_t*>(&poller->handle), OnClosed);
}

void OnCollected(napi_env, void* pointer, void*) {
  auto* poller = static_cast<Poller*>(pointer);
  poller->collected = true;
  if (poller->closed) delete poller;
}

void OnPoll(uv_poll_t* handle, int status, int events) {
  auto* poller = static_cast<Poller*>(handle->data);
  if (poller->closing) return;
  napi_env env = poller->data->env;
  napi_handle_scope scope;
  if (napi_open_handle_scope(env, &scope) != napi_ok) return;
  napi_value self = nullptr;
  napi_value callback = nullptr;
  napi_value argument = nullptr;
  napi_status called = napi_generic_failure;
  if (napi_get_reference_value(env, poller->self, &self) == napi_ok &&
      napi_get_reference_value(env, poller->callback, &callback) == napi_ok &&
      napi_create_int32(env, status < 0 ? status : events, &argument) == napi_ok) {
    called = napi_make_callback(env, nullptr, self, callback, 1, &argument, nullptr);
  }
  napi_value error = nullptr;
  if (called == napi_pending_exception && napi_get_and_clear_last_exception(env, &error) == napi_ok) {
    // Fails only when the handler of uncaught exceptions throws, which ends the process.
    called = napi_fatal_exception(env, error);
  }
  if (napi_close_handle_scope(env, scope) != napi_ok) Failed(env, "a handle scope cannot be closed");
}

/// createPoller(fd, callback(events or negative errno)) → Poller, stopped
napi_value CreatePoller(napi_env env, napi_callback_info info) {
  Arguments args(env, info);
  int fd = args.Fd(0);
  args.IsFunction(1);
  if (args.failed()) return nullptr;
  uv_loop_t* loop = nullptr;
  if (napi_get_uv_event_loop(env, &loop) != napi_ok) return Failed(env, "there is no event loop");
  AddonData* data = GetAddonData(env);
  if (data->closing) return Number(env, -ECANCELED);
  auto* poller = new Poller;
  int failed = uv_poll_init(loop, &poller->handle, fd);
  if (failed < 0) {
    delete poller;
    return Number(env, failed);
  }
  poller->handle.data = poller;
  poller->data = data;
  poller->next = data->pollers;
  if (data->pollers != nullptr) data->pollers->previous = poller;
  data->pollers = poller;

  napi_value instance = NewInstance(env, data->pollerClass, &Poller::kTag, poller, OnCollected);
  if (instance == nullptr) poller->collected = true;  // Deleted when the handle is closed.
  if (instance == nullptr || napi_create_reference(env, instance, 1, &poller->self) != napi_ok ||
      napi_create_reference(env, args.value(1), 1, &poller->callback) != napi_ok) {
    Close(poller);
    return Failed(env, "a poller cannot be made");
  }
  return instance;
}

/// start(events): watches for these, 1 readable, 2 writable, 4 disconnect; replaces what was watched before.
napi_value Start(napi_env env, napi_callback_info info) {
  Arguments args(env, info);
  auto* poller = args.Self<Poller>();
  int events = args.Int(0, 0, UV_READABLE | UV_WRITABLE | UV_DISCONNECT);
  if (args.failed()) return nullptr;
  if (poller->closing) return Number(env, -EBADF);
  return Number(env, uv_poll_start(&poller->handle, events, OnPoll));
}

napi_value Stop(napi_env env, napi_callback_info info) {
  Arguments args(env, info);
  auto* poller = args.Self<Poller>();
  if (args.failed()) return nullptr;
  return Number(env, poller->closing ? 0 : uv_poll_stop(&poller->handle));
}

/// close(): stops for good. The fd may be closed as soon as this returns.
napi_value ClosePoller(napi_env env, napi_callback_info info) {
  Arguments args(env, info);
  auto* poller = args.Self<Poller>();
  if (args.failed()) return nullptr;
  Close(poller);
  return Number(env, 0);
}

napi_value Ref(napi_env env, napi_callback_info info) {
  Arguments args(env, info);
  auto* poller = args.Self<Poller>();
  if (args.failed()) return nullptr;
  if (!poller->closing) uv_ref(reinterpret_cast<uv_handle_t*>(&poller->handle));
  return nullptr;
}

napi_value Unref(napi_env env, napi_callback_info info) {
  Arguments args(env, info);
  auto* poller = args.Self<Poller>();
  if (args.failed()) return nullptr;
  if (!poller->closing) uv_unref(reinterpret_cast<uv_handle_t*>(&poller->handle));
  return nullptr;
}

}  // namespace

void CloseAllPollers(AddonData* data) {
  data->closing = true;
  if (data->pollers == nullptr) {
    EndCleanup(data);
    return;
  }
  for (Poller* poller = data->pollers; poller != nullptr; poller = poller->next) Close(poller);
}

void InitPoll(napi_env env, napi_value exports, AddonData* data) {
  const napi_property_descriptor methods[] = {
      {"start", nullptr, Start, nullptr, nullptr, nullptr, napi_default_method, nullptr},
      {"stop", nullptr, Stop, nullptr, nullptr, nullptr, napi_default_method, nullptr},
      {"close", nullptr, ClosePoller, nullptr, nullptr, nullptr, napi_default_method, nullptr},
      {"ref", nullptr, Ref, nullptr, nullptr, nullptr, napi_default_method, nullptr},
      {"unref", nullptr, Unref, nullptr, nullptr, nullptr, napi_default_method, nullptr},
  };
  data->pollerClass = DefineClass(env, "Poller", methods, sizeof methods / sizeof *methods);
  Export(env, exports, "createPoller", CreatePoller);
}

}  // namespace devstate
