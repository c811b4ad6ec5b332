// SPDX-License-Identifier: Apache-2.0
// Readiness of a file descriptor on the event loop (uv_poll).
#include <uv.h>

#include <cerrno>

#include "support.h"

namespace devstate {

/// Lives from createPoller until its handle is closed and its JavaScript object is collected, whichever is later.
struct Poller {
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

void Unlink(Poller* poller) {
  AddonData* data = poller->data;
  if (poller->previous != nullptr) poller->previous->next = poller->next;
  if (poller->next != nullptr) poller->next->previous = poller->previous;
  if (data->pollers == poller) data->pollers = poller->next;
  if (data->closing && data->pollers == nullptr) napi_remove_async_cleanup_hook(data->cleanup);
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
  napi_delete_reference(env, poller->callback);
  napi_delete_reference(env, poller->self);
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
  napi_open_handle_scope(env, &scope);
  napi_value self = nullptr;
  napi_value callback = nullptr;
  napi_value argument = nullptr;
  napi_get_reference_value(env, poller->self, &self);
  napi_get_reference_value(env, poller->callback, &callback);
  napi_create_int32(env, status < 0 ? status : events, &argument);
  if (napi_make_callback(env, nullptr, self, callback, 1, &argument, nullptr) == napi_pending_exception) {
    napi_value error = nullptr;
    napi_get_and_clear_last_exception(env, &error);
    napi_fatal_exception(env, error);
  }
  napi_close_handle_scope(env, scope);
}

/// createPoller(fd, callback(events or negative errno)) → Poller, stopped
napi_value CreatePoller(napi_env env, napi_callback_info info) {
  Arguments args(env, info);
  int fd = args.Int(0);
  args.IsFunction(1);
  if (args.failed()) return nullptr;
  uv_loop_t* loop = nullptr;
  napi_get_uv_event_loop(env, &loop);
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

  napi_value constructor = nullptr;
  napi_value instance = nullptr;
  napi_get_reference_value(env, data->pollerClass, &constructor);
  napi_new_instance(env, constructor, 0, nullptr, &instance);
  napi_wrap(env, instance, poller, OnCollected, nullptr, nullptr);
  napi_create_reference(env, instance, 1, &poller->self);
  napi_create_reference(env, args.value(1), 1, &poller->callback);
  return instance;
}

/// start(events): watches for these, 1 readable, 2 writable, 4 disconnect; replaces what was watched before.
napi_value Start(napi_env env, napi_callback_info info) {
  Arguments args(env, info);
  auto* poller = args.Self<Poller>();
  int events = args.Int(0);
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

napi_value Construct(napi_env env, napi_callback_info info) { return Arguments(env, info).self(); }

}  // namespace

void CloseAllPollers(AddonData* data) {
  data->closing = true;
  if (data->pollers == nullptr) {
    napi_remove_async_cleanup_hook(data->cleanup);
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
  napi_value constructor = nullptr;
  napi_define_class(env, "Poller", NAPI_AUTO_LENGTH, Construct, nullptr, sizeof methods / sizeof *methods, methods,
                    &constructor);
  napi_create_reference(env, constructor, 1, &data->pollerClass);
  Export(env, exports, "createPoller", CreatePoller);
}

}  // namespace devstate
