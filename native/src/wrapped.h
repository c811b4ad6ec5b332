// SPDX-License-Identifier: Apache-2.0
// Objects of the addon's classes: made by the addon alone, and known again for certain.
#pragma once

#include "support.h"

namespace devstate {

/// What the constructor of T is given, and the mark of its objects. A base before ObjectWrap: what can fail has then been
/// done when the object is wrapped. A wrapped object whose constructor fails is unwrapped again, which an environment that
/// is being terminated refuses.
template <typename T, typename Given>
class Marked {
 protected:
  explicit Marked(const Napi::CallbackInfo& info) {
    if (offered == nullptr) ThrowTypeError(info.Env(), "objects of this class are made by the addon");
    info.This().As<Napi::Object>().TypeTag(&T::kTag);
    given = std::move(*std::exchange(offered, nullptr));
  }

  Given given{};
  static thread_local inline Given* offered = nullptr;
};

/// `class T : public Wrapped<T, Given>` is a class whose objects are made with Make().
template <typename T, typename Given>
class Wrapped : protected Marked<T, Given>, public Napi::ObjectWrap<T> {
 public:
  /// A new object of the class `constructor`, with `given`, which is dropped when the object cannot be made.
  static Napi::Object Make(const Napi::FunctionReference& constructor, Given given) {
    struct Offer {
      explicit Offer(Given* one) { Wrapped::offered = one; }
      ~Offer() { Wrapped::offered = nullptr; }
    } offer(&given);
    return constructor.New({});
  }

  static bool IsOne(Napi::Value value) {
    return value.IsObject() && value.As<Napi::Object>().CheckTypeTag(&T::kTag);
  }

  /// What every method and getter is called with. The library's own gives whatever pointer an object wraps.
  static T* Unwrap(Napi::Object object) {
    if (!IsOne(object)) ThrowTypeError(object.Env(), "this is not an object that the addon made");
    return Napi::ObjectWrap<T>::Unwrap(object);
  }

 protected:
  explicit Wrapped(const Napi::CallbackInfo& info) : Marked<T, Given>(info), Napi::ObjectWrap<T>(info) {}
};

}  // namespace devstate
