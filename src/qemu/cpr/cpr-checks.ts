// SPDX-License-Identifier: Apache-2.0
/** What must hold of a list of descriptors before a QEMU is given it. */
import type { CprDescriptor, CprState } from '../../formats/index.js';
import type { DescriptorKind } from './descriptor-kind.js';

/** A descriptor of the list, and what it is. */
export interface DescribedCprDescriptor extends Pick<CprDescriptor, 'name' | 'id'> {
  readonly descriptor: DescriptorKind;
}

/** What QEMU's names promise, of those that say what they are; `name` ends with `suffix` or is `exact`. */
const PROMISED: readonly (
  | { readonly exact: string; readonly kind: DescriptorKind['kind'] }
  | { readonly suffix: string; readonly kind: DescriptorKind['kind'] }
)[] = [
  { exact: 'vfio_group', kind: 'vfio-group' },
  { exact: 'vfio_container_for_group', kind: 'vfio-container' },
  { suffix: '_interrupt', kind: 'eventfd' },
  { suffix: '_kvm_interrupt', kind: 'eventfd' },
  { suffix: '_intx-interrupt', kind: 'eventfd' },
  { suffix: '_intx-unmask', kind: 'eventfd' },
  { suffix: '_err_notifier', kind: 'eventfd' },
  { suffix: '_req_notifier', kind: 'eventfd' },
];

/** Everything that is wrong with the list, for people; empty if nothing is. */
export function checkCprState(
  descriptors: readonly DescribedCprDescriptor[],
  vfioDevices: CprState['vfioDevices'],
  requirements: readonly string[],
): string[] {
  const known = new Map<string, DescribedCprDescriptor>();
  const names = new Set<string>();
  const wrong: string[] = [];
  for (const entry of descriptors) {
    const { name, id } = entry;
    if (known.has(keyOf(name, id))) wrong.push(`${name}, id ${id}, is there twice`);
    known.set(keyOf(name, id), entry);
    names.add(name);
    wrong.push(...unlikeItsName(entry), ...withoutItsPartner(entry, descriptors));
  }
  for (const { name } of vfioDevices) wrong.push(...incompleteDevice(name, known, descriptors));
  for (const wanted of requirements) if (!isThere(wanted, names, known)) wrong.push(`${wanted} is not there`);
  return wrong;
}

function keyOf(name: string, id: number): string {
  return `${id} ${name}`;
}

function unlikeItsName({ name, id, descriptor }: DescribedCprDescriptor): string[] {
  const promise = PROMISED.find((one) =>
    'exact' in one ? name === one.exact : name.length > one.suffix.length && name.endsWith(one.suffix),
  );
  if (promise === undefined || promise.kind === descriptor.kind) return [];
  return [`${name}, id ${id}, is no ${promise.kind} but ${descriptor.kind}`];
}

/** A group is of no use without its container, and the other way round. */
function withoutItsPartner(
  { name, id }: DescribedCprDescriptor,
  all: readonly DescribedCprDescriptor[],
): string[] {
  const pairs: Readonly<Record<string, string>> = {
    vfio_group: 'vfio_container_for_group',
    vfio_container_for_group: 'vfio_group',
  };
  const partner = pairs[name];
  if (partner === undefined || all.some((other) => other.name === partner && other.id === id)) return [];
  return [`${name}, id ${id}, is there without ${partner}`];
}

function incompleteDevice(
  name: string,
  known: ReadonlyMap<string, DescribedCprDescriptor>,
  all: readonly DescribedCprDescriptor[],
): string[] {
  const own = known.get(keyOf(name, 0));
  const wrong: string[] = [];
  if (own === undefined) wrong.push(`the VFIO device ${name} is there without its descriptor`);
  else if (own.descriptor.kind !== 'vfio-device')
    wrong.push(`the VFIO device ${name} is no vfio-device but ${own.descriptor.kind}`);
  if (!all.some(({ descriptor }) => descriptor.kind === 'iommufd'))
    wrong.push(`the VFIO device ${name} is there without an iommufd`);
  return wrong;
}

/** `wanted` is a name, or a name and an id behind a colon; a name may have colons itself. */
function isThere(
  wanted: string,
  names: ReadonlySet<string>,
  known: ReadonlyMap<string, DescribedCprDescriptor>,
): boolean {
  if (names.has(wanted)) return true;
  const match = /^(.+):(-?\d+)$/s.exec(wanted);
  return match !== null && known.has(keyOf(match[1]!, Number(match[2])));
}
