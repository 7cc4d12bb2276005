import type { TestPlatform } from '@holdfast/testing';
import type { ApiClient } from './api-client.ts';
import type { RawNamespace } from './raw-cluster.ts';
import type { ScriptedModel } from './scripted-model.ts';

/** What one measurement found. Times are milliseconds unless `unit` says otherwise. */
export interface Figure {
  readonly what: string;
  readonly value: number;
  readonly unit: string;
  /** Bound that the value (or its ratio to the baseline) has to keep. Absent: the figure is only stated. */
  readonly target?: { readonly of?: 'ratio' } & ({ readonly atMost: number } | { readonly atLeast: number });
  /** The same thing done without Holdfast, measured in the same run, in the same unit. */
  readonly baseline?: { readonly what: string; readonly value: number };
  /** What has to be known to read the value: how many, of what, under which load. */
  readonly detail?: string;
}

/** A platform of its own, the model that it asks, and a client. All clocks are this process's. */
export interface Arena {
  readonly platform: TestPlatform;
  readonly model: ScriptedModel;
  readonly api: ApiClient;
}

/** A platform whose sandboxes are pods, and beside it the namespace where they run, asked without it. */
export interface ClusterArena extends Arena {
  readonly raw: RawNamespace;
}

/** What the benches of one run share; each part is started by the first that asks and ended by the runner. */
export interface Stage {
  arena(): Promise<Arena>;
  /** Another platform, on the test bed. @throws where none runs */
  clusterArena(): Promise<ClusterArena>;
  /** URL of an empty Postgres server of its own, for the log without the platform. */
  postgres(): Promise<string>;
}

export interface Bench {
  readonly name: string;
  readonly about: string;
  /** Needs the test bed: left out where none runs, unless it is asked for by name. */
  readonly onCluster?: true;
  /** Longest that it may take, in milliseconds. @default 180_000 */
  readonly limitMs?: number;
  run(stage: Stage): Promise<readonly Figure[]>;
}

/** The value that the share `q` of the samples does not exceed. @throws when there is no sample */
export function quantile(samples: readonly number[], q: number): number {
  const sorted = [...samples].sort((a, b) => a - b);
  const value = sorted[Math.min(sorted.length - 1, Math.ceil(sorted.length * q) - 1)];
  if (value === undefined) throw new Error('nothing was measured');
  return value;
}

export const median = (samples: readonly number[]): number => quantile(samples, 0.5);

/** p50 and p95 of one series, each with its bound. */
export function p50AndP95(
  what: string,
  samples: readonly number[],
  atMost: { readonly p50?: number; readonly p95?: number },
  detail?: string,
): Figure[] {
  const figure = (q: number, bound: number | undefined): Figure => ({
    what: `${what}, p${q * 100}`,
    value: quantile(samples, q),
    unit: 'ms',
    ...(bound === undefined ? {} : { target: { atMost: bound } }),
  });
  return [{ ...figure(0.5, atMost.p50), ...(detail === undefined ? {} : { detail }) }, figure(0.95, atMost.p95)];
}

/** @throws when `work` takes longer; it is not stopped by that. */
export async function within<T>(ms: number, what: string, work: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what} took longer than ${ms / 1_000} s`)), ms);
  });
  try {
    return await Promise.race([work, late]);
  } finally {
    clearTimeout(timer);
  }
}
