import { describe, expect, it } from '@jest/globals';
import { type Known, nextStep, type Patience } from './sandbox.decider.ts';
import type { SandboxObservation } from './sandbox.observe.ts';

const NOW = 1_000_000_000;
const patience: Patience = {
  idleMs: 60_000,
  lifetimeMs: null,
  unwantedMs: 40_000,
  linkMs: 20_000,
  relinkMs: 40_000,
  nodeLostMs: 30_000,
};

function known({ row, ...rest }: Partial<Omit<Known, 'row'>> & { row?: Partial<Known['row']> } = {}): Known {
  return {
    row: { status: 'ready', claim: 'sbx-1', pod_uid: 'pod-1', unused_ms: 1_000, lived_ms: 1_000, ...row },
    fresh: true,
    linked: true,
    busy: false,
    sinceMs: NOW - 1_000,
    lastUsedMs: NOW - 1_000,
    silent: false,
    ...rest,
  };
}
const seen = (changes: Partial<SandboxObservation> = {}): SandboxObservation => ({
  phase: 'running',
  podUid: 'pod-1',
  pod: 'pool-abcde',
  node: 'node-1',
  containerId: 'c1',
  restarts: 0,
  launch: 'warm',
  reason: null,
  ...changes,
});
const unschedulable = { code: 'unschedulable', message: '0/2 nodes are available' } as const;
const nodeLost = { code: 'node-lost', message: 'Node node-1 does not answer' } as const;
const starting = { status: 'starting' } as const;
const step = (a: Known, b: SandboxObservation = seen(), how: Partial<Patience> = {}) =>
  nextStep(a, b, { ...patience, ...how }, NOW);

describe('a sandbox that is wanted', () => {
  it('gets a claim, again when the claim is not there', () => {
    expect(step(known({ row: { ...starting, claim: null } }), seen({ phase: 'absent' }))).toEqual({ do: 'claim' });
    expect(step(known({ row: starting }), seen({ phase: 'absent' }))).toEqual({ do: 'claim' });
  });
  it('is lost when the claim that it rested on is gone, with what that kept', () => {
    const rested = known({ row: starting, fresh: false, linked: false });
    expect(step(rested, seen({ phase: 'absent' }))).toEqual({ do: 'lost', why: 'its claim was deleted' });
  });
  it('is resumed once its old pod is gone, never before', () => {
    expect(step(known({ row: starting }), seen({ phase: 'suspending' }))).toMatchObject({ do: 'wait' });
    expect(step(known({ row: starting }), seen({ phase: 'suspended', podUid: null }))).toEqual({ do: 'resume' });
  });
  it('is placed in a pod that it does not know yet, then waits for that pod’s runner', () => {
    expect(step(known({ row: { ...starting, pod_uid: 'pod-0' }, linked: false }))).toEqual({ do: 'place' });
    expect(step(known({ row: starting, linked: false }))).toMatchObject({ do: 'wait' });
    expect(step(known({ row: starting }))).toEqual({ do: 'bind' });
  });
  it('says what it waits for', () => {
    expect(step(known({ row: starting, linked: false }), seen({ phase: 'pending', reason: unschedulable }))).toEqual({
      do: 'wait',
      reason: unschedulable,
      afterMs: 1_000,
    });
  });
  it('says that its runner has not dialled, not at once', () => {
    const silent = (ms: number) => known({ row: starting, linked: false, sinceMs: NOW - ms });
    expect(step(silent(1_500))).toEqual({ do: 'wait', reason: null, afterMs: 1_000 });
    expect(step(silent(2_000))).toMatchObject({ do: 'wait', reason: { code: 'not-linked' }, afterMs: 1_000 });
    expect(step(silent(2_000), seen({ reason: unschedulable }))).toMatchObject({ reason: unschedulable });
  });
  it('that nobody has asked for in a while is given up, with a claim or without', () => {
    const forgotten = { ...starting, unused_ms: 41_000 };
    expect(step(known({ row: forgotten }), seen({ phase: 'pending' }))).toMatchObject({ do: 'rest' });
    expect(step(known({ row: { ...forgotten, claim: null } }), seen({ phase: 'absent' }))).toMatchObject({
      do: 'rest',
    });
  });
  it('whose runner does not dial gets another pod, a crashing one its time', () => {
    const silent = known({ row: starting, linked: false, sinceMs: NOW - 21_000 });
    expect(step(silent)).toMatchObject({ do: 'replace', force: false });
    const looping = { code: 'crash-loop', message: 'back-off' } as const;
    expect(step(silent, seen({ reason: looping }))).toMatchObject({ do: 'wait', reason: looping });
  });
});

describe('a sandbox that runs', () => {
  it('is left alone while it is used, and rests when it is idle', () => {
    expect(step(known())).toEqual({ do: 'wait', reason: null, afterMs: 59_000 });
    expect(step(known({ busy: true, lastUsedMs: NOW - 90_000 }))).toMatchObject({ do: 'wait' });
    expect(step(known({ lastUsedMs: NOW - 60_000 }))).toEqual({ do: 'rest', why: 'idle' });
  });
  it('rests at the end of its lifetime, when no call runs', () => {
    expect(step(known({ row: { lived_ms: 99_000 }, busy: true }), seen(), { lifetimeMs: 90_000 })).toMatchObject({
      do: 'wait',
    });
    expect(step(known({ row: { lived_ms: 99_000 } }), seen(), { lifetimeMs: 90_000 })).toMatchObject({ do: 'rest' });
    expect(step(known({ row: { lived_ms: 50_000 } }), seen(), { lifetimeMs: 90_000 })).toEqual({
      do: 'wait',
      reason: null,
      afterMs: 40_000,
    });
  });
  it('whose link ended has long to link again, one that fell silent has not', () => {
    const lost = (silent: boolean, ms: number) => known({ linked: false, silent, sinceMs: NOW - ms });
    expect(step(lost(false, 39_000))).toMatchObject({ do: 'wait', afterMs: 1_000 });
    expect(step(lost(false, 40_000))).toMatchObject({ do: 'replace', force: false });
    expect(step(lost(true, 19_000))).toMatchObject({ do: 'wait' });
    expect(step(lost(true, 20_000))).toMatchObject({ do: 'replace', force: false });
  });
  it('is lost with its pod: replaced, ended, or gone with a claim that somebody deleted', () => {
    expect(step(known(), seen({ podUid: 'pod-2' }))).toMatchObject({ do: 'lost' });
    expect(step(known({ linked: false }), seen({ phase: 'ended' }))).toMatchObject({ do: 'lost' });
    expect(step(known({ linked: false }), seen({ phase: 'ending' }))).toMatchObject({ do: 'wait' });
    expect(step(known({ linked: false }), seen({ phase: 'absent' }))).toMatchObject({ do: 'lost' });
  });
  it('may still tell its results while its pod goes', () => {
    expect(step(known(), seen({ phase: 'pending' }))).toMatchObject({ do: 'wait' });
    expect(step(known({ linked: false }), seen({ phase: 'pending' }))).toMatchObject({ do: 'lost' });
  });
  it('on a node that does not answer is replaced by force, after a while and only without a link', () => {
    const lost = seen({ reason: nodeLost });
    expect(step(known(), lost)).toMatchObject({ do: 'wait', reason: null });
    expect(step(known({ linked: false, sinceMs: NOW - 29_000 }), lost)).toEqual({
      do: 'wait',
      reason: nodeLost,
      afterMs: 1_000,
    });
    expect(step(known({ linked: false, sinceMs: NOW - 30_000 }), lost)).toMatchObject({ do: 'replace', force: true });
  });
  it('that was suspended on the cluster is recorded as that', () => {
    expect(step(known({ linked: false }), seen({ phase: 'suspended', podUid: null }))).toEqual({ do: 'settle' });
    expect(step(known(), seen({ phase: 'suspended', podUid: null }))).toMatchObject({ do: 'wait' });
  });
});

describe('a sandbox that is not wanted', () => {
  it('is left as it is', () => {
    for (const status of ['suspended', 'failed', 'destroyed'] as const)
      expect(step(known({ row: { status } }))).toEqual({ do: 'wait', reason: null, afterMs: null });
  });
});
