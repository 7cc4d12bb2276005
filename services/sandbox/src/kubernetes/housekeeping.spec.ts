import { DEFAULT_SANDBOX } from '@holdfast/contracts';
import type { Logger } from '@holdfast/platform';
import { describe, expect, it } from '@jest/globals';
import type { EnvironmentRow } from '../store/environment.store.ts';
import type { SandboxRow } from '../store/sandbox.store.ts';
import { Housekeeping, type HousekeepingParts } from './housekeeping.ts';
import type { SandboxClaim, SandboxWarmPool } from './kinds.ts';
import { ANNOTATIONS } from './names.ts';

const LONG_AGO = '2020-01-01T00:00:00Z';
const claim = {
  metadata: { name: 'sbx-1', namespace: 'ns', annotations: { [ANNOTATIONS.sandboxId]: 's1' } },
  spec: { warmPoolRef: { name: 'env-1' }, lifecycle: { shutdownTime: '2999-01-01T00:00:00Z' } },
} as unknown as SandboxClaim;
const pool = (name: string): SandboxWarmPool =>
  ({
    metadata: { name, namespace: 'ns', creationTimestamp: LONG_AGO },
    spec: { replicas: 2 },
  }) as unknown as SandboxWarmPool;
const environment = (pool_size: number, retired = false): EnvironmentRow =>
  ({
    environment_id: `e${pool_size}`,
    workspace_id: 'w1',
    config: { x_sandbox: { ...DEFAULT_SANDBOX, pool_size } },
    retired,
  }) as unknown as EnvironmentRow;

/** One round over a cluster and rows as they are given, and what was asked for in it. */
async function round(given: {
  readonly workspaces?: string[];
  readonly claims?: SandboxClaim[];
  /** What each reading of the row finds. */
  readonly status?: SandboxRow['status'][];
  readonly pools?: SandboxWarmPool[];
  readonly environments?: EnvironmentRow[];
  readonly cannotApply?: boolean;
}): Promise<string[]> {
  const asked: string[] = [];
  const note = (what: string) => Promise.resolve(void asked.push(what));
  const statuses = [...(given.status ?? [])];
  await new Housekeeping({
    view: {
      healthy: true,
      synced: true,
      workspaces: () => given.workspaces ?? [],
      claims: () => given.claims ?? [],
      pools: () => given.pools ?? [],
      pool: () => ({}),
      template: () => null,
      podUids: () => [],
      observePool: () => ({ size: 2, ready: 2, reason: null }),
      sandboxOf: () => ({ spec: { operatingMode: 'Running' } }),
    },
    objects: {
      remove: ({ metadata }: SandboxClaim) => note(`remove ${metadata.name}`),
      setMode: (_row: unknown, mode: string) => note(`mode ${mode}`),
      namespace: (workspaceId: string) => note(`namespace ${workspaceId}`),
      environmentPool: () => 'env-1',
      environment: () => (given.cannotApply === true ? Promise.reject(new Error('no answer')) : note('environment')),
      emptyPool: ({ metadata }: SandboxWarmPool) => note(`empty ${metadata.name}`),
    },
    rows: {
      alone: (work: () => Promise<void>) => work(),
      forgetKeys: () => Promise.resolve(),
      keepPools: (ids: string[]) => note(`keep ${ids.join()}`),
      recordPool: () => note('record'),
    },
    store: {
      byIds: () => Promise.resolve(new Map([['s1', { id: 's1', status: statuses.shift(), claim: 'sbx-1' }]])),
    },
    environments: { all: () => Promise.resolve(given.environments ?? []) },
    orphanMs: 60_000,
    logger: { warn: () => undefined } as unknown as Logger,
  } as unknown as HousekeepingParts).run();
  return asked;
}

it('what bounds a workspace is put back, and before its pools are filled', async () => {
  const given = { workspaces: ['w1', 'w2'], environments: [environment(2)] };
  expect(await round(given)).toEqual(['namespace w1', 'namespace w2', 'keep e2', 'environment']);
});

describe('claims', () => {
  it('of a sandbox that rests is kept resting, unless it is wanted again by then', async () => {
    expect(await round({ claims: [claim], status: ['suspended', 'suspended'] })).toContain('mode Suspended');
    expect(await round({ claims: [claim], status: ['suspended', 'starting'] })).not.toContain('mode Suspended');
  });
  it('that no row needs are removed', async () => {
    expect(await round({ claims: [claim], status: ['destroyed'] })).toContain('remove sbx-1');
    expect(await round({ claims: [claim], status: ['ready'] })).not.toContain('remove sbx-1');
  });
});

describe('pools', () => {
  it('that no environment asks for go, one that cannot be applied now stays', async () => {
    const pools = [pool('env-1'), pool('env-0')];
    expect(await round({ pools, environments: [environment(2)], cannotApply: true })).toEqual([
      'keep e2',
      'empty env-0',
      'remove env-0',
    ]);
  });
  it('are recorded for environments that have one, in one statement for all others', async () => {
    const environments = [environment(0), environment(3, true), environment(2)];
    expect(await round({ pools: [pool('env-1')], environments })).toEqual(['keep e2', 'environment', 'record']);
  });
});
