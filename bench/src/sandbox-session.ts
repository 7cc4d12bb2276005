import { randomUUID } from 'node:crypto';
import { performance } from 'node:perf_hooks';
import { setTimeout as sleep } from 'node:timers/promises';
import type { EventStream } from './api-client.ts';
import { type Arena, type ClusterArena, within } from './bench.ts';
import type { Seen } from './raw-cluster.ts';
import type { Script } from './scripted-model.ts';

/** One call; times by `performance.now()`, all at the client. */
export interface CallTimes {
  readonly sentAt: number;
  /** `agent.tool_use` is there: the call is open. */
  readonly calledAt: number;
  /** `agent.tool_result` is there: the command is done. */
  readonly doneAt: number;
}

const CALL_MS = 60_000;

/** A session whose every message is one call in its sandbox. */
export class SandboxSession {
  readonly id: string;
  readonly #arena: Arena;
  readonly #stream: EventStream;
  #calls = 0;

  private constructor(arena: Arena, id: string, stream: EventStream) {
    this.#arena = arena;
    this.id = id;
    this.#stream = stream;
  }

  /** Null = the default environment. */
  static async open(arena: Arena, environmentId: string | null): Promise<SandboxSession> {
    const { setup } = arena.api;
    const tools = [{ type: 'agent_toolset_20260401' }];
    const agent = await setup.json<{ id: string }>('/v1/agents', { json: { name: 'bench', model: 'demo', tools } });
    const environment = environmentId === null ? {} : { environment_id: environmentId };
    const { id } = await setup.json<{ id: string }>('/api/sessions', { json: { agent_id: agent.id, ...environment } });
    return new SandboxSession(arena, id, await arena.api.stream(id));
  }

  /** @throws when the call did not succeed */
  async run(call: Pick<Script, 'bash' | 'read'> = { bash: 'true' }): Promise<CallTimes> {
    const { api } = this.#arena;
    const id = `${this.id}-${this.#calls++}`;
    const [called, done, idle] = ['agent.tool_use', 'agent.tool_result', 'session.status_idle'].map((type) =>
      within(CALL_MS, `${type} of ${this.id}`, this.#stream.next(type)),
    ) as [Promise<number>, Promise<number>, Promise<number>];
    const all = Promise.all([called, done, idle]);
    all.catch(() => undefined);
    const sentAt = performance.now();
    await api.send(this.id, { id, ...call });
    const [calledAt, doneAt] = await all;
    const result = (await api.setup.events(this.id)).findLast(({ type }) => type === 'agent.tool_result');
    if (result?.['is_error'] === true) throw new Error(`the command failed: ${JSON.stringify(result)}`);
    return { sentAt, calledAt, doneAt };
  }

  /** The session's sandbox as it is recorded. */
  async sandbox(): Promise<Record<string, unknown>> {
    const [row] = await this.#arena.platform.query('select * from sandboxes where session_id = $1', [this.id]);
    if (row === undefined) throw new Error(`${this.id} has no sandbox`);
    return row;
  }

  /** Archives the session; its sandbox is removed. */
  async end(): Promise<void> {
    this.#stream.close();
    await this.#arena.api.setup.json(`/v1/sessions/${this.id}/archive`, { json: {} });
  }
}

/** Small, so that a pool of 20 and as many claims fit on the bed. */
const MEMORY_MIB = 192;

/** Makes an environment; returns its id. */
export async function makeEnvironment(
  arena: ClusterArena,
  sandbox: Readonly<Record<string, unknown>>,
): Promise<string> {
  const name = `bench-${randomUUID()}`;
  const config = { type: 'cloud', x_sandbox: { memory_mib: MEMORY_MIB, workspace_mib: 64, ...sandbox } };
  const { id } = await arena.api.setup.json<{ id: string }>('/v1/environments', { json: { name, config } });
  return id;
}

/** Archives it: its pool empties. */
export async function retire(arena: ClusterArena, environmentId: string): Promise<void> {
  await arena.api.setup.json(`/v1/environments/${environmentId}/archive`, { json: {} });
}

/** The name of an environment's pool, once it is there. */
export async function poolOf({ raw }: ClusterArena, environmentId: string): Promise<string> {
  const { found } = await raw.when(`the pool of ${environmentId}`, () =>
    raw.all('pools').find(({ metadata }) => metadata.annotations?.['holdfast.dev/environment-id'] === environmentId),
  );
  return found.metadata.name;
}

/** So long nothing moves before the next is measured. */
const QUIET_MS = 300;
const SETTLE_MS = 120_000;

/**
 * Resolves when the pool is full, its runners have linked, no other pod comes or goes in the namespace, and a moment of
 * quiet has passed: what is measured next is measured alone.
 */
export async function settled({ raw, platform }: ClusterArena, pool: string): Promise<void> {
  const { found } = await raw.when(
    `${pool} is full and nothing ends`,
    () => {
      const { metadata, spec, status } = raw.get('pools', pool) ?? { metadata: { uid: '' } };
      const size = spec?.replicas ?? 0;
      const members = raw.all('sandboxes').filter((sandbox) => ownedBy(sandbox, metadata.uid));
      const pods = members.map((sandbox) => raw.get('pods', sandbox.metadata.name));
      const moves =
        members.length !== size ||
        (status?.readyReplicas ?? 0) !== size ||
        pods.includes(undefined) ||
        raw.all('pods').some((pod) => pod.metadata.deletionTimestamp !== undefined) ||
        raw.all('pools').some((other) => (other.spec?.replicas ?? 0) !== (other.status?.readyReplicas ?? 0));
      return moves ? undefined : pods.map((pod) => pod?.metadata.uid ?? '');
    },
    SETTLE_MS,
  );
  for (const deadline = Date.now() + 30_000; ; await sleep(50)) {
    const [row] = await platform.query('select count(*)::int as linked from runner_keys where pod_uid = any ($1)', [
      found,
    ]);
    if (row?.['linked'] === found.length) break;
    if (Date.now() > deadline) throw new Error(`${found.length} warm runners did not all link within 30 s`);
  }
  await sleep(QUIET_MS);
}

function ownedBy({ metadata }: Seen, uid: string): boolean {
  return metadata.ownerReferences?.some((owner) => owner.uid === uid) === true;
}
