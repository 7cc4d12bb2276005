import { readdirSync, readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Frame } from '@holdfast/testing';
import type { KindName, Kinds, Stored } from '../kinds.ts';
import { ANNOTATIONS, LABELS } from '../names.ts';
import { ownerUid } from '../sandbox.observe.ts';
import { type ClusteredPlatform, type Tenant } from './clustered-platform.ts';

export const REPLICAS = ['sandbox', 'sandbox-2'];
/** Housekeeping forgets what is older than a minute, a few seconds later. */
const KEPT_MS = 75_000;

type AnyObject = Stored<Kinds[KindName]>;

/** What is on the cluster without a reason, or missing there, or recorded without anything on the cluster: told in words. */
export async function astray(platform: ClusteredPlatform): Promise<string[]> {
  const { admin, installation } = platform;
  const labelSelector = `${LABELS.installation}=${installation}`;
  const list = <K extends KindName>(kind: K): Promise<readonly Stored<Kinds[K]>[]> =>
    admin.list(kind, { labelSelector });
  const rows = await platform.query(
    "select id, session_id, status, claim from sandboxes where status <> 'destroyed' or claim is not null",
  );
  const [namespaces, claims, pools, templates, pods] = await Promise.all([
    list('Namespace'),
    list('SandboxClaim'),
    list('SandboxWarmPool'),
    list('SandboxTemplate'),
    list('Pod'),
  ]);
  const inside = async <K extends KindName>(kind: K): Promise<readonly Stored<Kinds[K]>[]> =>
    (await Promise.all(namespaces.map(({ metadata: { name } }) => admin.list(kind, { namespace: name })))).flat();
  const [sandboxes, volumes, policies] = await Promise.all([
    inside('Sandbox'),
    inside('PersistentVolumeClaim'),
    inside('NetworkPolicy'),
  ]);
  const found: string[] = [];
  const living = (owners: readonly AnyObject[]): Set<string> => new Set(owners.map(({ metadata }) => metadata.uid));
  const owned = (objects: readonly AnyObject[], owners: ReadonlySet<string>): void => {
    for (const { kind, metadata } of objects) {
      const owner = ownerUid({ metadata });
      if (owner === null || !owners.has(owner)) found.push(`${kind} ${metadata.name} belongs to nothing`);
      if (metadata.deletionTimestamp !== undefined) found.push(`${kind} ${metadata.name} has not ended`);
    }
  };
  const kindly = <K extends KindName>(kind: K, objects: readonly Stored<Kinds[K]>[]) =>
    objects.map((object) => ({ ...object, kind })) as AnyObject[];
  const rowOf = new Map(rows.map((row) => [row['id'], row]));
  for (const { metadata } of claims) {
    const row = rowOf.get(metadata.annotations?.[ANNOTATIONS.sandboxId] ?? '');
    if (row?.['claim'] !== metadata.name || row['status'] === 'destroyed')
      found.push(`SandboxClaim ${metadata.name} has no row`);
    if (metadata.deletionTimestamp !== undefined) found.push(`SandboxClaim ${metadata.name} has not ended`);
  }
  const names = new Set(claims.map(({ metadata }) => metadata.name));
  for (const row of rows) {
    const [id, status, claim] = ['id', 'status', 'claim'].map((column) => {
      const value = row[column];
      return typeof value === 'string' ? value : null;
    });
    if (status === 'destroyed') found.push(`${id} is destroyed and names the claim ${claim}`);
    else if (claim === null ? status !== 'suspended' : claim === undefined || !names.has(claim))
      found.push(`${id} is ${status} and its claim ${claim} is not there`);
  }
  owned(
    kindly('Sandbox', sandboxes),
    new Set([...living(kindly('SandboxClaim', claims)), ...living(kindly('SandboxWarmPool', pools))]),
  );
  owned(kindly('Pod', pods), living(kindly('Sandbox', sandboxes)));
  owned(kindly('PersistentVolumeClaim', volumes), living(kindly('Sandbox', sandboxes)));
  owned(
    kindly(
      'NetworkPolicy',
      policies.filter(({ metadata }) => metadata.labels?.[LABELS.installation] === undefined),
    ),
    living(kindly('SandboxTemplate', templates)),
  );
  const wanted = await platform.query('select environment_id from sandbox_pools where size > 0');
  for (const { metadata } of pools) {
    const kept = wanted.some((row) => row['environment_id'] === metadata.annotations?.[ANNOTATIONS.environmentId]);
    const claimed = claims.some(({ spec }) => spec.warmPoolRef.name === metadata.name);
    if (!kept && !claimed && ageMs(metadata.creationTimestamp) > KEPT_MS)
      found.push(`SandboxWarmPool ${metadata.name} is nobody's`);
  }
  for (const { metadata } of templates)
    if (!pools.some((pool) => pool.metadata.name === metadata.name) && ageMs(metadata.creationTimestamp) > KEPT_MS)
      found.push(`SandboxTemplate ${metadata.name} has no pool`);
  const uids = living(kindly('Pod', pods));
  for (const { pod, pod_uid: uid, bound_at: bound } of await platform.query(
    'select pod, pod_uid, bound_at from runner_keys',
  ))
    if (!uids.has(String(uid)) && Date.now() - (bound as Date).getTime() > KEPT_MS)
      found.push(`the key of pod ${String(pod)} is kept`);
  return found;
}

/** Waits until nothing is astray; returns the milliseconds. @throws Error with what still is */
export async function settled(platform: ClusteredPlatform, timeoutMs: number): Promise<number> {
  const beganMs = Date.now();
  for (;;) {
    const found = await astray(platform);
    if (found.length === 0) return Date.now() - beganMs;
    if (Date.now() - beganMs > timeoutMs) throw new Error(`astray after ${timeoutMs} ms: ${found.join('; ')}`);
    await sleep(500);
  }
}

/** What the sandbox service holds, all replicas together. */
export interface Held {
  readonly descriptors: number;
  readonly links: number;
  readonly residentMib: number;
}

export async function held(platform: ClusteredPlatform): Promise<Held> {
  const { first } = platform;
  const { services } = await first.client.json<{
    services: { service: string; figures: Record<string, unknown> }[];
  }>('/v1/x/status');
  let links = 0;
  for (const { service, figures } of services)
    if (service === 'sandbox') links += Number(figures['linked']) + Number(figures['warm']);
  const pids = REPLICAS.map((name) => platform.pid(name));
  const residentKib = pids.map((one) =>
    Number(/^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${one}/status`, 'utf8'))?.[1]),
  );
  return {
    descriptors: pids.reduce((sum, one) => sum + readdirSync(`/proc/${one}/fd`).length, 0),
    links,
    residentMib: Math.round(residentKib.reduce((sum, kib) => sum + kib, 0) / 1024),
  };
}

/** Milliseconds from a message that needs no tool to the first piece of its answer. */
export async function firstTokenMs(tenant: Tenant, session: string): Promise<number> {
  const { promise: streaming, resolve } = Promise.withResolvers<void>();
  let heardAtMs = 0;
  const heard = tenant.client.frames(
    `/v1/sessions/${session}/events/stream?after=0&event_deltas[]=agent.message`,
    (frames: readonly Frame[]) => {
      resolve();
      if (!frames.some(({ event }) => event === 'event_delta')) return false;
      heardAtMs = Date.now();
      return true;
    },
  );
  await streaming;
  const saidAtMs = Date.now();
  await tenant.say(session, 'SLOW[3]');
  await heard;
  return heardAtMs - saidAtMs;
}

function ageMs(time: string): number {
  return Date.now() - Date.parse(time);
}

/** What a spec measured, for whoever reads its run. */
export function tellFigures(line: string): void {
  process.stderr.write(`${line}\n`);
}
