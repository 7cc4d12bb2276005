import assert from 'node:assert/strict';
import { isAppError } from '@holdfast/contracts';

/** The pure parts of an aggregate: `D` is an event as a decider writes it, `E` as the log stores it. */
export interface Aggregate<S, D, E> {
  readonly initialState: S;
  evolve(state: S, event: E): S;
  /** Makes the stored event of a draft; `version` counts from 1. */
  store(draft: D, version: number): E;
}

/** What a decision is compared with. */
export interface Decision<S, D> {
  /** Exactly these drafts, in this order. */
  then(...expected: readonly D[]): void;
  thenNothing(): void;
  /** Refused with an AppError of this code. */
  thenRefused(code: string): void;
  /** Any further check: of the drafts, and of the state after they are folded. */
  thenState(check: (state: S, drafts: readonly D[]) => void): void;
}

/** A history to decide upon. */
export interface Given<S, D> {
  when(decide: (state: S) => D | readonly D[]): Decision<S, D>;
}

/**
 * Specifications of a pure decider: `given(...history).when((state) => decide(…)).then(...events)`. Whatever is decided
 * is also folded, so a decision that its own `evolve` cannot read fails every specification that makes it. The state is
 * frozen (Maps and Sets are not): a decision or fold that changes it throws.
 */
export function specification<S, D, E>(aggregate: Aggregate<S, D, E>): (...history: readonly D[]) => Given<S, D> {
  const fold = (history: readonly D[], from: S = aggregate.initialState, version = 0): S =>
    history.reduce((state, draft, index) => aggregate.evolve(state, aggregate.store(draft, version + index + 1)), from);

  return (...history) => ({
    when: (decide) => {
      const before = frozen(fold(history));
      const decideOnce = (): readonly D[] => {
        const decided = decide(before);
        return Array.isArray(decided) ? (decided as readonly D[]) : [decided as D];
      };
      const settle = (): { drafts: readonly D[]; after: S } => {
        const drafts = decideOnce();
        return { drafts, after: fold(drafts, before, history.length) };
      };
      return {
        then: (...expected) => assert.deepEqual(settle().drafts, expected),
        thenNothing: () => assert.deepEqual(settle().drafts, []),
        thenRefused: (code) =>
          assert.throws(decideOnce, (error: unknown) => {
            assert.ok(isAppError(error), `expected the refusal ${code}, but got: ${String(error)}`);
            assert.equal(error.code, code);
            return true;
          }),
        thenState: (check) => {
          const { drafts, after } = settle();
          check(after, drafts);
        },
      };
    },
  });
}

function frozen<T>(value: T): T {
  if (typeof value === 'object' && value !== null && !Object.isFrozen(value)) {
    Object.freeze(value);
    for (const member of Object.values(value)) frozen(member);
  }
  return value;
}
