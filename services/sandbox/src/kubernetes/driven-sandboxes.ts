import type { SandboxReason } from '@holdfast/contracts';
import type { LinkedSandbox } from '../host/linked-sandbox.ts';
import type { SandboxRow, SandboxStore } from '../store/sandbox.store.ts';

/** A sandbox that this replica has the right to drive. */
export interface Driven {
  linked: LinkedSandbox | null;
  sinceMs: number;
  /** Its link ended because nothing was heard of it. */
  silent: boolean;
  /** The container that runs on a node that answers. */
  answering: string | null;
  /** The environment as whoever asked for it last knows it. */
  environment: SandboxRow['environment'] | null;
  reason: { readonly code: SandboxReason['code']; readonly sinceMs: number } | null;
  measureAtMs: number;
  /** What was done and cannot be seen yet: by step and name, until when it is not done again. */
  readonly done: Map<string, number>;
}

/** The sandboxes whose rows this replica has leased. */
export class DrivenSandboxes {
  readonly #store: SandboxStore;
  readonly #driven = new Map<string, Driven>();

  constructor(store: SandboxStore) {
    this.#store = store;
  }

  get size(): number {
    return this.#driven.size;
  }
  /** How many have a runner that is linked here. */
  get linked(): number {
    return [...this.#driven.values()].filter((one) => one.linked?.linked === true).length;
  }
  [Symbol.iterator](): MapIterator<[string, Driven]> {
    return this.#driven[Symbol.iterator]();
  }

  of(id: string): Driven | null {
    return this.#driven.get(id) ?? null;
  }

  /** Begins to drive one whose lease this replica has just taken; one that it drives goes on as it is. */
  take({ id }: Pick<SandboxRow, 'id'>): Driven {
    const driven: Driven = this.#driven.get(id) ?? {
      linked: null,
      sinceMs: Date.now(),
      silent: false,
      answering: null,
      environment: null,
      reason: null,
      measureAtMs: 0,
      done: new Map(),
    };
    this.#driven.set(id, driven);
    return driven;
  }

  letGo(id: string): void {
    const driven = this.#driven.get(id);
    this.#driven.delete(id);
    driven?.linked?.close();
  }

  async renew(): Promise<void> {
    if (this.#driven.size === 0) return;
    const ids = [...this.#driven.keys()];
    const askedMs = Date.now();
    const kept = await this.#store.renew(ids);
    // One whose link has landed here since then is this replica's again.
    for (const id of ids) if (!kept.has(id) && (this.#driven.get(id)?.sinceMs ?? 0) < askedMs) this.letGo(id);
  }

  /** Takes those of a provider that should run and that nobody drives; returns their ids. */
  async adopt(provider: string): Promise<string[]> {
    const adopted: string[] = [];
    for (const { id } of await this.#store.abandoned([...this.#driven.keys()], provider)) {
      const row = await this.#store.own(id);
      if (row === null) continue;
      this.take(row);
      adopted.push(id);
    }
    return adopted;
  }

  /** Still ours to end? After a stall it may be another replica's, or destroyed. */
  async mine(id: string): Promise<boolean> {
    if ((await this.#store.renew([id])).has(id)) return true;
    this.letGo(id);
    return false;
  }

  /** Returns the ids of those that it had. */
  letGoOfAll(): string[] {
    const ids = [...this.#driven.keys()];
    for (const id of ids) this.letGo(id);
    return ids;
  }
}
