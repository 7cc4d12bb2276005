import { performance } from 'node:perf_hooks';
import { setTimeout as sleep } from 'node:timers/promises';
import { streamOf } from '@holdfast/contracts';
import { sandboxesOf } from '@holdfast/testing';
import { type Bench, type ClusterArena, type Figure, median, quantile } from '../bench.ts';
import { cpuSeconds, parentOf, pssMib } from '../processes.ts';
import { conditionOf } from '../raw-cluster.ts';
import { type CallTimes, makeEnvironment, poolOf, retire, SandboxSession, settled } from '../sandbox-session.ts';

const seconds = (n: number): number => n * 1_000;
const CONTROLLER = 'the controller alone, claim → Ready';

/** What the first command of a session took and what the controller took for a claim of the same pool, in milliseconds. */
interface Claims {
  readonly first: readonly CallTimes[];
  /** The same command again, when its sandbox is there and nothing else moves: what of the first is the command itself. */
  readonly again?: readonly CallTimes[];
  readonly ready: readonly number[];
}

/** Both, and what is ours beyond the controller's. */
function claimFigures(how: string, { first, again = [], ready }: Claims, bounded: boolean, detail: string): Figure[] {
  const called = first.map(({ calledAt, doneAt }) => doneAt - calledAt);
  const sent = first.map(({ sentAt, doneAt }) => doneAt - sentAt);
  const of = [0.5, 0.99].map((q) => ({
    p: `p${q * 100}`,
    ours: quantile(called, q),
    theirs: quantile(ready, q),
    whole: quantile(sent, q),
    atMost: q === 0.5 ? 50 : 150,
  }));
  return [
    ...of.map(({ p, ours, theirs, atMost }, n) => ({
      what: `${how}: above the controller's, ${p}`,
      value: ours - theirs,
      unit: 'ms',
      ...(bounded ? { target: { atMost } } : {}),
      ...(n === 0 ? { detail } : {}),
    })),
    ...of.map(({ p, ours, theirs }) => ({
      what: `${how}: call opened → first command done, ${p}`,
      value: ours,
      unit: 'ms',
      baseline: { what: CONTROLLER, value: theirs },
    })),
    ...of.map(({ p, whole }) => ({
      what: `${how}: message sent → first command done, ${p}`,
      value: whole,
      unit: 'ms',
    })),
    ...(again.length === 0
      ? []
      : [
          {
            what: `${how}: call opened → the next command done, all quiet, p50`,
            value: median(again.map(({ calledAt, doneAt }) => doneAt - calledAt)),
            unit: 'ms',
          },
        ]),
  ];
}

/** A session's first command, alone, and the next one. Its sandbox is gone afterwards. */
async function firstCommand(
  arena: ClusterArena,
  environmentId: string,
  launch: string,
): Promise<{ first: CallTimes; again: CallTimes }> {
  const session = await SandboxSession.open(arena, environmentId);
  const first = await session.run();
  await settled(arena, await poolOf(arena, environmentId));
  const again = await session.run();
  const sandbox = await session.sandbox();
  if (sandbox['launch'] !== launch) throw new Error(`a sandbox that was to start ${launch} did not`);
  await session.end();
  await podGone(arena, String(sandbox['pod_uid']));
  return { first, again };
}

/** A claim of the same pool, alone, without Holdfast. */
async function rawClaim({ raw }: ClusterArena, pool: string, name: string, launch: string): Promise<number> {
  const { sentAt, readyAt, sandbox } = await raw.claim(name, pool);
  const { metadata } = raw.get('sandboxes', sandbox) ?? {};
  if (metadata?.labels?.['agents.x-k8s.io/launch-type'] !== launch)
    throw new Error(`a claim that was to start ${launch} did not`);
  const uid = raw.get('pods', sandbox)?.metadata.uid ?? '';
  await raw.removeClaim(name);
  await raw.when(`the pod of ${name} is gone`, () => (hasPod(raw, uid) ? undefined : true));
  return readyAt - sentAt;
}

const hasPod = (raw: ClusterArena['raw'], uid: string): boolean =>
  raw.all('pods').some(({ metadata }) => metadata.uid === uid);

async function podGone({ raw }: ClusterArena, uid: string): Promise<number> {
  return (await raw.when(`pod ${uid} is gone`, () => (hasPod(raw, uid) ? undefined : true))).at;
}

/** One ours, one theirs, in turns; the one that goes first changes. */
async function pairs(arena: ClusterArena, launch: 'warm' | 'cold', poolSize: number, count: number): Promise<Claims> {
  const environmentId = await makeEnvironment(arena, { workspace: 'ephemeral', pool_size: poolSize });
  if (poolSize > 0) await settled(arena, await poolOf(arena, environmentId));
  // A pool of nothing is made by its first claim.
  await firstCommand(arena, environmentId, launch);
  const pool = await poolOf(arena, environmentId);
  const ours: { first: CallTimes; again: CallTimes }[] = [];
  const ready: number[] = [];
  for (let n = 0; n < count; n++) {
    for (const who of n % 2 === 0 ? ['ours', 'theirs'] : ['theirs', 'ours']) {
      await settled(arena, pool);
      if (who === 'ours') ours.push(await firstCommand(arena, environmentId, launch));
      else ready.push(await rawClaim(arena, pool, `raw-${launch}-${n}`, launch));
    }
  }
  await retire(arena, environmentId);
  return { first: ours.map(({ first }) => first), again: ours.map(({ again }) => again), ready };
}

const WARM = 40;
const WARM_POOL = 3;

export const claimBench: Bench = {
  name: 'claim',
  about: 'on a cluster, warm: first call of a session → its command done, beside claim → Ready',
  onCluster: true,
  limitMs: seconds(900),
  async run(stage) {
    const claims = await pairs(await stage.clusterArena(), 'warm', WARM_POOL, WARM);
    return claimFigures(
      'warm',
      claims,
      true,
      `${WARM} of each in turns, one at a time, the pool of ${WARM_POOL} full and quiet before each; bash \`true\``,
    );
  },
};

const COLD = 10;

export const coldBench: Bench = {
  name: 'claim-cold',
  about: 'the same with no pool: a pod is made',
  onCluster: true,
  limitMs: seconds(300),
  async run(stage) {
    const claims = await pairs(await stage.clusterArena(), 'cold', 0, COLD);
    return claimFigures(
      'cold',
      claims,
      false,
      `${COLD} of each in turns; Ready says that the container runs, ours includes the start of the runner in it`,
    );
  },
};

const BURST = 20;
const ROUNDS = 2;

export const burstBench: Bench = {
  name: 'claim-burst',
  about: `${BURST} sessions' first calls at once on a pool of ${BURST}, beside ${BURST} claims at once`,
  onCluster: true,
  limitMs: seconds(900),
  async run(stage) {
    const arena = await stage.clusterArena();
    const environmentId = await makeEnvironment(arena, { workspace: 'ephemeral', pool_size: BURST });
    const pool = await poolOf(arena, environmentId);
    const each = Array.from({ length: BURST }, (_, n) => n);
    const first: CallTimes[] = [];
    const ready: number[] = [];
    const ourTotals: number[] = [];
    const theirTotals: number[] = [];
    const ours = async (): Promise<void> => {
      const sessions = await Promise.all(each.map(() => SandboxSession.open(arena, environmentId)));
      await settled(arena, pool);
      const times = await Promise.all(sessions.map((session) => session.run()));
      first.push(...times);
      ourTotals.push(Math.max(...times.map(({ doneAt }) => doneAt)) - Math.min(...times.map(({ sentAt }) => sentAt)));
      await Promise.all(sessions.map((session) => session.end()));
    };
    const theirs = async (round: number): Promise<void> => {
      await settled(arena, pool);
      const names = each.map((n) => `raw-burst-${round}-${n}`);
      const times = await Promise.all(names.map((name) => arena.raw.claim(name, pool)));
      ready.push(...times.map(({ sentAt, readyAt }) => readyAt - sentAt));
      theirTotals.push(
        Math.max(...times.map(({ readyAt }) => readyAt)) - Math.min(...times.map(({ sentAt }) => sentAt)),
      );
      await Promise.all(names.map((name) => arena.raw.removeClaim(name)));
    };
    for (let round = 0; round < ROUNDS; round++) {
      if (round % 2 === 0) await ours();
      await theirs(round);
      if (round % 2 === 1) await ours();
    }
    await retire(arena, environmentId);
    const listed = (totals: readonly number[]): string => totals.map((ms) => ms.toFixed(0)).join(', ');
    return [
      {
        what: `burst of ${BURST}: first message sent → last command done`,
        value: median(ourTotals),
        unit: 'ms',
        baseline: { what: `${BURST} claims at once, all Ready`, value: median(theirTotals) },
        detail: `${ROUNDS} rounds of each in turns: ${listed(ourTotals)} ms beside ${listed(theirTotals)} ms`,
      },
      ...claimFigures(`burst of ${BURST}`, { first, ready }, false, 'each of the burst by itself'),
    ];
  },
};

const WAKES = 6;
const IDLE_SECONDS = 5;
const GONE_MS = seconds(5);

interface Rest {
  /** From the record that it rests to the end of its pod. */
  readonly goneMs: number;
}

/** Waits until the session's sandbox rests by itself and its pod is gone. */
async function rest(arena: ClusterArena, session: SandboxSession): Promise<Rest> {
  const { id, pod_uid: uid, incarnation } = await session.sandbox();
  const suspended = async (): Promise<number | null> => {
    const [row] = await arena.platform.query(
      `select extract(epoch from recorded_at)::float8 * 1000 as at from events
       where stream_id = $1 and type = 'sandbox.suspended' order by position offset $2`,
      [streamOf('sandbox', String(id)), Number(incarnation) - 1],
    );
    return row === undefined ? null : Number(row['at']);
  };
  const gone = await podGone(arena, String(uid));
  for (const deadline = Date.now() + 10_000; ; await sleep(50)) {
    const at = await suspended();
    // Both clocks are this machine's.
    if (at !== null) return { goneMs: performance.timeOrigin + gone - at };
    if (Date.now() > deadline) throw new Error(`the pod of ${session.id} ended but its sandbox does not rest`);
  }
}

function wakeFigures(
  how: string,
  our: { gone: readonly number[]; wakes: readonly CallTimes[] },
  their: { gone: readonly number[]; goneIs: string; ready: readonly number[]; readyIs: string },
): Figure[] {
  const wakes = (from: 'sentAt' | 'calledAt') => our.wakes.map((times) => times.doneAt - times[from]);
  return [
    {
      what: `${how}: rest recorded → pod gone, slowest`,
      value: Math.max(...our.gone),
      unit: 'ms',
      target: { atMost: GONE_MS },
      baseline: { what: `slowest, ${their.goneIs}`, value: Math.max(...their.gone) },
      detail: `${our.gone.length} of each, one at a time`,
    },
    {
      what: `${how}: rest recorded → pod gone, p50`,
      value: median(our.gone),
      unit: 'ms',
      baseline: { what: their.goneIs, value: median(their.gone) },
    },
    {
      what: `${how}: message sent → first command done after a wake, p50`,
      value: median(wakes('sentAt')),
      unit: 'ms',
      baseline: { what: their.readyIs, value: median(their.ready) },
    },
    {
      what: `${how}: call opened → first command done after a wake, p50`,
      value: median(wakes('calledAt')),
      unit: 'ms',
      baseline: { what: their.readyIs, value: median(their.ready) },
    },
  ];
}

/** Rests by giving its claim back, wakes on a new one. */
async function ephemeralWakes(arena: ClusterArena): Promise<Figure[]> {
  const { raw } = arena;
  const sandbox = { workspace: 'ephemeral', pool_size: 2, idle_seconds: IDLE_SECONDS };
  const environmentId = await makeEnvironment(arena, sandbox);
  const pool = await poolOf(arena, environmentId);
  const session = await SandboxSession.open(arena, environmentId);
  const our = { gone: [] as number[], wakes: [] as CallTimes[] };
  const their = { gone: [] as number[], ready: [] as number[] };
  await settled(arena, pool);
  await session.run();
  for (let n = 0; n < WAKES; n++) {
    our.gone.push((await rest(arena, session)).goneMs);
    await settled(arena, pool);
    const name = `raw-wake-${n}`;
    const claim = await raw.claim(name, pool);
    their.ready.push(claim.readyAt - claim.sentAt);
    const uid = raw.get('pods', claim.sandbox)?.metadata.uid ?? '';
    await settled(arena, pool);
    const removedAt = performance.now();
    await raw.removeClaim(name);
    their.gone.push((await podGone(arena, uid)) - removedAt);
    await settled(arena, pool);
    our.wakes.push(await session.run());
  }
  await session.end();
  await retire(arena, environmentId);
  return wakeFigures('ephemeral', our, {
    ...their,
    goneIs: 'claim deleted → pod gone',
    readyIs: CONTROLLER,
  });
}

/** Rests by being suspended, wakes by being resumed, on the same files. */
async function volumeWakes(arena: ClusterArena): Promise<Figure[]> {
  const { raw } = arena;
  const environmentId = await makeEnvironment(arena, { workspace: 'volume', pool_size: 0, idle_seconds: IDLE_SECONDS });
  const session = await SandboxSession.open(arena, environmentId);
  await session.run();
  const pool = await poolOf(arena, environmentId);
  const our = { gone: [] as number[], wakes: [] as CallTimes[] };
  const their = { gone: [] as number[], ready: [] as number[] };
  const name = 'raw-volume';
  const { sandbox } = await raw.claim(name, pool);
  for (let n = 0; n < WAKES; n++) {
    our.gone.push((await rest(arena, session)).goneMs);
    await settled(arena, pool);
    const before = raw.get('pods', sandbox)?.metadata.uid;
    const suspendedAt = performance.now();
    await raw.setMode(sandbox, 'Suspended');
    const ended = await raw.when(`${sandbox} is suspended`, () =>
      conditionOf(raw.get('sandboxes', sandbox), 'Suspended')?.reason === 'PodTerminated' ? true : undefined,
    );
    their.gone.push(ended.at - suspendedAt);
    await settled(arena, pool);
    const resumedAt = performance.now();
    await raw.setMode(sandbox, 'Running');
    const ready = await raw.when(`${sandbox} is resumed`, () => {
      const uid = raw.get('pods', sandbox)?.metadata.uid;
      const isReady = conditionOf(raw.get('sandboxes', sandbox), 'Ready')?.status === 'True';
      return isReady && uid !== undefined && uid !== before ? true : undefined;
    });
    their.ready.push(ready.at - resumedAt);
    await settled(arena, pool);
    our.wakes.push(await session.run());
    const { launch } = await session.sandbox();
    if (launch !== 'resumed') throw new Error(`the sandbox started ${String(launch)} instead of being resumed`);
  }
  await raw.removeClaim(name);
  await session.end();
  await retire(arena, environmentId);
  return wakeFigures('with a volume', our, {
    ...their,
    goneIs: 'Suspended → PodTerminated',
    readyIs: 'Running → Ready, another pod',
  });
}

export const wakeBench: Bench = {
  name: 'wake',
  about: 'on a cluster: a sandbox rests and is woken by a message, ephemeral and with a volume',
  onCluster: true,
  limitMs: seconds(600),
  async run(stage) {
    const arena = await stage.clusterArena();
    return [...(await ephemeralWakes(arena)), ...(await volumeWakes(arena))];
  },
};

const IDLE = 20;
const IDLE_MS = seconds(30);
const CALM_MS = seconds(10);

export const idleBench: Bench = {
  name: 'idle-cost',
  about: `what an idle sandbox costs its node and the hub, of ${IDLE} warm ones`,
  onCluster: true,
  limitMs: seconds(300),
  async run(stage) {
    const arena = await stage.clusterArena();
    const { platform } = arena;
    const hub = platform.pid('sandbox');
    await sleep(CALM_MS);
    const without = pssMib(hub);
    const environmentId = await makeEnvironment(arena, { workspace: 'ephemeral', pool_size: IDLE });
    await settled(arena, await poolOf(arena, environmentId));
    await sleep(CALM_MS);
    const sandboxes = sandboxesOf(platform);
    if (sandboxes.length !== IDLE) throw new Error(`${sandboxes.length} of ${IDLE} sandboxes run on this machine`);
    const shims = sandboxes.map(({ init }) => parentOf(init));
    const withAll = pssMib(hub);
    const sum = (pids: readonly number[]): number => pids.reduce((total, pid) => total + pssMib(pid), 0);
    const roots = {
      ...Object.fromEntries(sandboxes.map(({ init }, n) => [`sandbox ${n}`, init])),
      ...Object.fromEntries(shims.map((pid, n) => [`shim ${n}`, pid])),
      hub,
    };
    const before = cpuSeconds<string>(roots);
    await sleep(IDLE_MS);
    const after = cpuSeconds<string>(roots);
    /** Thousandths of a core. */
    const spent = (of: string): number =>
      Object.keys(roots)
        .filter((name) => name.startsWith(of))
        .reduce((total, name) => total + ((after[name] ?? 0) - (before[name] ?? 0)), 0) /
      (IDLE_MS / 1_000_000);
    await retire(arena, environmentId);
    const per = `per sandbox, mean of ${IDLE} warm ones`;
    return [
      {
        what: 'idle sandbox: memory of its first process and its runner',
        value: sum(sandboxes.flatMap(({ pids }) => pids)) / IDLE,
        unit: 'MiB',
        detail: `PSS, ${per}; pages that they share are counted by share`,
      },
      {
        what: 'idle sandbox: memory of its shim',
        value: sum(shims) / IDLE,
        unit: 'MiB',
        detail: 'containerd-shim-runc-v2, one for each pod; without the pause container',
      },
      {
        what: 'idle sandbox: processor of its first process and its runner',
        value: spent('sandbox') / IDLE,
        unit: 'millicores',
        detail: `over ${IDLE_MS / 1_000} s`,
      },
      { what: 'idle sandbox: processor of its shim', value: spent('shim') / IDLE, unit: 'millicores' },
      {
        what: 'idle sandbox: memory of the sandbox service for its link and what it keeps of its objects',
        value: (withAll - without) / IDLE,
        unit: 'MiB',
        detail: `PSS ${without.toFixed(0)} MiB before the pool was made, ${withAll.toFixed(0)} MiB with ${IDLE} links`,
      },
      {
        what: `processor of the sandbox service with ${IDLE} idle links`,
        value: spent('hub'),
        unit: 'millicores',
      },
    ];
  },
};
