// SPDX-License-Identifier: Apache-2.0
// Readiness of a file descriptor on the event loop (uv_poll).
#include <uv.h>

#include "wrapped.h"

namespace devstate {

class Poller;

/// A handle of the event loop, from uv_poll_init until the loop has closed it.
struct PollHandle {
  explicit PollHandle(AddonData* one) : data(one) {
    data->pollHandles.insert(this);
    handle.data = this;
  }
  PollHandle(const PollHandle&) = delete;
  PollHandle& operator=(const PollHandle&) = delete;
  ~PollHandle() { data->pollHandles.erase(this); }

  AddonData* const data;
  uv_poll_t handle{};
  Poller* owner = nullptr;  ///< nullptr once it is being closed.
};

namespace {

/// The last use of `data`, which the environment may delete then.
void EndCleanup(AddonData* data) {
  if (napi_remove_async_cleanup_hook(data->cleanup) != napi_ok) {
    Napi::Error::Fatal("devstate", "the end of the pollers cannot be announced");
  }
}

void OnClosed(uv_handle_t* handle) {
  auto* closed = static_cast<PollHandle*>(handle->data);
  AddonData* data = closed->data;
  delete closed;
  if (data->closing && data->pollHandles.empty()) EndCleanup(data);
}

struct CloseHandle {
  void operator()(PollHandle* one) const {
    one->owner = nullptr;
    uv_close(reinterpret_cast<uv_handle_t*>(&one->handle), OnClosed);
  }
};

using OpenHandle = std::unique_ptr<PollHandle, CloseHandle>;

}  // namespace

/// While open it holds itself, so that a watched fd keeps its callback.
class Poller : public Wrapped<Poller, OpenHandle> {
 public:
  static constexpr napi_type_tag kTag = {0x6465767374617465, 0x706f6c6c65720001};

  explicit Poller(const Napi::CallbackInfo& info) : Wrapped(info) { given->owner = this; }

  void Open(Napi::Function callback) {
    callback_ = Napi::Persistent(callback);
    Ref();
    held_ = true;
  }

  void Close() {
    if (given == nullptr) return;
    given.reset();
    callback_.Reset();
    // Not held when the engine refused the object after it was made.
    if (std::exchange(held_, false)) Unref();
  }

  void Call(int events);

  /// start(events): watches for these, 1 readable, 2 writable, 4 disconnect; replaces what was watched before.
  Napi::Value Start(const Napi::CallbackInfo& info);
  Napi::Value Stop(const Napi::CallbackInfo& info) {
    return Number(info.Env(), given == nullptr ? 0 : uv_poll_stop(&given->handle));
  }
  /// close(): stops for good. The fd may be closed as soon as this returns.
  Napi::Value End(const Napi::CallbackInfo& info) {
    Close();
    return Number(info.Env(), 0);
  }
  void RefLoop(const Napi::CallbackInfo&) {
    if (given != nullptr) uv_ref(reinterpret_cast<uv_handle_t*>(&given->handle));
  }
  void UnrefLoop(const Napi::CallbackInfo&) {
    if (given != nullptr) uv_unref(reinterpret_cast<uv_handle_t*>(&given->handle));
  }

 private:
  Napi::FunctionReference callback_;
  bool held_ = false;  ///< By itself.
};

namespace {

void OnPoll(uv_poll_t* handle, int status, int events) {
  Poller* owner = static_cast<PollHandle*>(handle->data)->owner;
  if (owner != nullptr) owner->Call(status < 0 ? status : events);
}

/// createPoller(fd, callback(events or negative errno)) → Poller, stopped
Napi::Value CreatePoller(const Napi::CallbackInfo& info) {
  Args args(info);
  int fd = args.Fd(0);
  Napi::Function callback = args.Function(1);
  Napi::Env env = info.Env();
  uv_loop_t* loop = nullptr;
  Check(env, napi_get_uv_event_loop(env, &loop));
  auto* data = env.GetInstanceData<AddonData>();
  if (data->closing) return Number(env, -ECANCELED);
  auto handle = std::make_unique<PollHandle>(data);
  int failed = uv_poll_init(loop, &handle->handle, fd);
  if (failed < 0) return Number(env, failed);
  Napi::Object made = Poller::Make(data->pollerClass, OpenHandle(handle.release()));
  Poller::Unwrap(made)->Open(callback);
  return made;
}

}  // namespace

void Poller::Call(int events) {
  Napi::Env env = Env();
  Napi::HandleScope scope(env);
  try {
    callback_.MakeCallback(Value(), {Number(env, events)});
  } catch (const Napi::Error& error) {
    // Refused when the environment ends, or when the handler of uncaught exceptions throws, which ends the process.
    static_cast<void>(napi_fatal_exception(env, error.Value()));
  }
}

Napi::Value Poller::Start(const Napi::CallbackInfo& info) {
  int events = Args(info).Int(0, 0, UV_READABLE | UV_WRITABLE | UV_DISCONNECT);
  return Number(info.Env(), given == nullptr ? -EBADF : uv_poll_start(&given->handle, events, OnPoll));
}

void CloseAllPollers(AddonData* data) {
  data->closing = true;
  if (data->pollHandles.empty()) {
    EndCleanup(data);
    return;
  }
  for (PollHandle* handle : data->pollHandles) {
    if (handle->owner != nullptr) handle->owner->Close();
  }
}

void InitPoll(Napi::Object exports) {
  Napi::Env env = exports.Env();
  constexpr auto kMethod = napi_default_method;
  env.GetInstanceData<AddonData>()->pollerClass =
      Napi::Persistent(Poller::DefineClass(env, "Poller",
                                           {
                                               Poller::InstanceMethod<&Poller::Start>("start", kMethod),
                                               Poller::InstanceMethod<&Poller::Stop>("stop", kMethod),
                                               Poller::InstanceMethod<&Poller::End>("close", kMethod),
                                               Poller::InstanceMethod<&Poller::RefLoop>("ref", kMethod),
                                               Poller::InstanceMethod<&Poller::UnrefLoop>("unref", kMethod),
                                           }));
  Export<CreatePoller>(exports, "createPoller");
}

}  // namespace devstate
