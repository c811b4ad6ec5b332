// SPDX-License-Identifier: Apache-2.0
/**
 * A state as a tree of objects, lists and plain values ↔ the same as named values: `registers.cc`, `features[2].value`.
 * An empty list is its length alone: `commands.length` = 0.
 */
import { DevstateError } from '../errors.js';

/** A value of one name. Numbers are unsigned and below 2^53. */
export type LeafValue = number | boolean | string | Uint8Array;

/** Lists longer than this are refused: a name must not make a reader allocate. */
const MAX_LIST_LENGTH = 65536;
const MAX_DEPTH = 16;

/** All leaves of `tree`, in its order. */
export function flattenTree(tree: object): Map<string, LeafValue> {
  const leaves = new Map<string, LeafValue>();
  collect(tree, '', leaves);
  return leaves;
}

function collect(node: unknown, path: string, leaves: Map<string, LeafValue>): void {
  if (Array.isArray(node)) {
    leaves.set(`${path}.length`, node.length);
    for (const [index, item] of node.entries()) collect(item, `${path}[${index}]`, leaves);
  } else if (typeof node === 'object' && node !== null && !(node instanceof Uint8Array)) {
    for (const [name, value] of Object.entries(node))
      collect(value, path === '' ? name : `${path}.${name}`, leaves);
  } else leaves.set(path, node as LeafValue);
}

interface Branch {
  readonly children: Map<string, Branch | LeafValue>;
}

/**
 * The tree that `leaves` are of. What the values mean is checked by the code that takes the tree.
 * @throws DevstateError DEVSTATE_E_STATE_VALUE for names that do not make a tree
 */
export function unflattenTree(leaves: ReadonlyMap<string, LeafValue>): unknown {
  const root: Branch = { children: new Map() };
  for (const [path, value] of leaves) place(root, path, value);
  return build(root, '');
}

function place(root: Branch, path: string, value: LeafValue): void {
  const steps = path.split(/\.|(?=\[)/);
  if (steps.length > MAX_DEPTH || !steps.every((step) => /^([A-Za-z]\w*|\[\d{1,5}\])$/.test(step)))
    throw wrong(path);
  const last = steps.pop()!;
  let branch = root;
  for (const step of steps) {
    const next = branch.children.get(step) ?? { children: new Map() };
    if (!isBranch(next)) throw wrong(path);
    branch.children.set(step, next);
    branch = next;
  }
  if (branch.children.has(last)) throw wrong(path);
  branch.children.set(last, value);
}

function build(branch: Branch, path: string): unknown {
  const length = branch.children.get('length');
  const names = [...branch.children.keys()];
  const items = names.filter((name) => name.startsWith('['));
  if (typeof length !== 'number' || items.length + 1 < names.length) {
    // Items are of a list, and a list has its length and nothing else.
    if (items.length > 0) throw wrong(`${path}${items[0]}`);
    return Object.fromEntries(
      [...branch.children].map(([name, child]) => [
        name,
        isBranch(child) ? build(child, `${path}.${name}`) : child,
      ]),
    );
  }
  if (length > MAX_LIST_LENGTH || items.length !== length) throw wrong(`${path}.length`);
  return Array.from({ length }, (_, index) => {
    const child = branch.children.get(`[${index}]`);
    if (child === undefined) throw wrong(`${path}[${index}]`);
    return isBranch(child) ? build(child, `${path}[${index}]`) : child;
  });
}

function isBranch(node: Branch | LeafValue): node is Branch {
  return typeof node === 'object' && !(node instanceof Uint8Array);
}

function wrong(path: string): DevstateError {
  return new DevstateError(
    'DEVSTATE_E_STATE_VALUE',
    `the value ${path.slice(0, 128)} does not fit among the others`,
  );
}
