import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { startPlatform, type TestPlatform } from '@holdfast/testing';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

interface WireEvent {
  readonly type: string;
  readonly content?: { readonly text: string }[];
  readonly error?: { readonly message: string };
}

interface Forked {
  readonly id: string;
  readonly forked_from: { readonly missing_tool_use_ids: string[] };
}

/** The same specs run on a cluster that the environment names. */
const onCluster = process.env['SANDBOX_PROVIDER'] === 'kubernetes';
const CANARY = 'canary-4711-of-the-workspace';
let platform: TestPlatform;
let agentId: string;
let environmentId: string | undefined;
beforeAll(async () => {
  platform = await startPlatform({
    SANDBOX_IDLE_MS: '3000',
    CHECKPOINT_MAX_FILES: '300',
    CHECKPOINT_EXCLUDE: 'workspace/left-out',
  });
  agentId = (
    (await call('POST', '/v1/agents', {
      ...{ name: 'tools', model: 'demo', tools: [{ type: 'agent_toolset_20260401' }] },
    })) as { id: string }
  ).id;
  // The default one has a volume there, which outlives its pods.
  const config = { type: 'cloud', x_sandbox: { workspace: 'ephemeral' } };
  if (onCluster)
    environmentId = ((await call('POST', '/v1/environments', { name: 'forgetful', config })) as { id: string }).id;
}, 240_000);
afterAll(async () => {
  await platform.stop();
}, 60_000);

async function call(method: string, path: string, json?: unknown): Promise<unknown> {
  const response = await fetch(platform.apiUrl + path, {
    method,
    headers: { 'x-api-key': platform.apiKey },
    ...(json === undefined ? {} : { body: JSON.stringify(json) }),
  });
  const body: unknown = await response.json();
  if (!response.ok) throw new Error(`${method} ${path}: ${response.status} ${JSON.stringify(body)}`);
  return body;
}
const newSession = async (rest: object = {}): Promise<string> =>
  (
    (await call('POST', '/api/sessions', { agent_id: agentId, environment_id: environmentId, ...rest })) as {
      id: string;
    }
  ).id;
const list = async (id: string): Promise<WireEvent[]> =>
  ((await call('GET', `/v1/sessions/${id}/events?limit=1000`)) as { data: WireEvent[] }).data;
const say = (id: string, text: string): Promise<unknown> =>
  call('POST', `/v1/sessions/${id}/events`, { events: [{ type: 'user.message', content: [{ type: 'text', text }] }] });

async function until(what: string, met: () => Promise<boolean>, timeoutMs = 60_000): Promise<void> {
  for (const deadline = Date.now() + timeoutMs; !(await met()); await sleep(50))
    if (Date.now() > deadline) throw new Error(`in vain: ${what}`);
}
const idle = (id: string): Promise<void> =>
  until('idle', async () => ((await call('GET', `/v1/sessions/${id}`)) as { status: string }).status === 'idle');
/** The results of a turn's calls. */
async function turn(id: string, text: string): Promise<string[]> {
  const before = (await resultsOf(id)).length;
  await say(id, text);
  await idle(id);
  return (await resultsOf(id)).slice(before);
}
const resultsOf = async (id: string): Promise<string[]> =>
  (await list(id))
    .filter(({ type }) => type === 'agent.tool_result')
    .map(({ content }) => content?.map((block) => block.text).join('') ?? '');
const stored = async (id: string) =>
  (await platform.query('select version, type, data from events where stream_id = $1 order by version', [
    `session-${id}`,
  ])) as { version: string; type: string; data: Record<string, unknown> }[];
const sandboxOf = async (id: string) =>
  (
    await platform.query('select id, status from sandboxes where session_id = $1 order by created_at desc', [id])
  )[0] as {
    id: string;
    status: string;
  };

/** Everything that the sandbox was: on a cluster it is given back with its files, on one machine its folder is removed. */
async function loseRested(id: string): Promise<void> {
  await until('rest', async () => (await sandboxOf(id)).status === 'suspended');
  if (!onCluster) rmSync(join(platform.stateDir, 'sandboxes'), { recursive: true });
}

const MAKE =
  "RUN[mkdir -p src/deep 'odd name' empty left-out; echo one > src/deep/a.txt; printf '#!/bin/sh\\n' > run.sh; chmod 750 run.sh; ln -s src/deep/a.txt link; echo x > left-out/x; " +
  `head -c 3000000 /dev/urandom > 'odd name/big'; echo ${CANARY} > canary; touch -d 2001-02-03T04:05:06Z old; echo at home > ~/note; rm -f gone]`;
const LOOK =
  "RUN[find . ~ -path ./left-out -prune -o -path '*/.holdfast/*' -prune -o -type f -printf '%p %m %T@ ' -exec sha256sum {} \\; -o -type l -printf '%p -> %l\\n' -o -type d -empty -printf '%p %m\\n' | sort]";

/** Times are kept so exactly. */
const toMicroseconds = (text = ''): string => text.replace(/(\.\d{6})\d{4} /g, '$1 ');

describe('a session whose sandbox is gone with its files', () => {
  it('goes on with its files, and its agent is told', async () => {
    const id = await newSession();
    await turn(id, MAKE);
    const before = toMicroseconds((await turn(id, LOOK))[0]);
    await loseRested(id);
    const after = toMicroseconds((await turn(id, LOOK))[0]);
    expect(after).toBe(
      `[The sandbox was started anew with its files as they were kept last. Nothing of them is missing. Processes that ran in it are gone.]\n\n${before}`,
    );
    expect(await turn(id, 'RUN[ls left-out 2>&1; cat ~/note link]')).toEqual([
      expect.stringMatching(/No such file[^\n]*\nat home\none/),
    ]);
    // Told once.
    expect((await stored(id)).filter(({ type }) => type === 'session.sandbox_restored')).toHaveLength(1);
  }, 120_000);

  it('was idle only once they were kept, in every turn that changed any (C1)', async () => {
    const id = await newSession();
    await turn(id, 'RUN[echo 1 > a]');
    await turn(id, 'hello');
    await turn(id, 'WRITE[b|2]');
    const types = (await stored(id))
      .map(({ type }) => type)
      .filter((type) => /idle|checkpointed|tool_result/.test(type));
    expect(types).toEqual([
      ...['agent.tool_result', 'session.checkpointed', 'session.status_idle'],
      'session.status_idle',
      ...['agent.tool_result', 'session.checkpointed', 'session.status_idle'],
    ]);
    const rows = await platform.query('select id, version, through_version from checkpoints where session_id = $1', [
      id,
    ]);
    const recorded = (await stored(id)).filter(({ type }) => type === 'session.checkpointed').map(({ data }) => data);
    expect(new Set(rows.map((row) => row['id']))).toEqual(new Set(recorded.map((data) => data['checkpoint_id'])));
  }, 60_000);

  it('finds those of a turn before, when it is lost in the middle of one, and which calls are missing', async () => {
    const id = await newSession();
    await turn(id, 'RUN[echo kept > kept]');
    await say(id, 'WRITE[lost|x] RUN[sleep 30] RUN[ls]');
    await until(
      'the second call',
      async () => (await list(id)).filter(({ type }) => type === 'agent.tool_use').length === 3,
    );
    await sleep(500);
    await kill(id);
    await idle(id);
    const [, , unknown, ls] = await resultsOf(id);
    expect(unknown).toMatch(/^Outcome unknown/);
    const missing = (await stored(id)).find(({ type }) => type === 'session.sandbox_restored')?.data[
      'missing_call_ids'
    ];
    const calls = (await platform.query(
      `select id from events where stream_id = $1 and type = 'agent.tool_use' order by version`,
      [`session-${id}`],
    )) as { id: string }[];
    expect(missing).toEqual([calls[1]?.id, calls[2]?.id]);
    expect(ls).toBe(
      `[The sandbox was started anew with its files as they were kept last. What these earlier calls did to files is missing: ${calls[1]?.id}, ${calls[2]?.id}. Check what you need, and do it again if it is right to. Processes that ran in it are gone.]\n\nkept\n`,
    );
  }, 120_000);
});

describe('a fork', () => {
  it('begins with the files of then, in a sandbox of its own, also when the other one is deleted', async () => {
    const id = await newSession();
    await turn(id, 'RUN[echo first > file; echo at home > ~/note]');
    const then = (await stored(id)).at(-1);
    await turn(id, 'RUN[echo second > file; touch later]');
    const child = (await call('POST', `/v1/sessions/${id}/fork`, { at_version: Number(then?.version) })) as Forked;
    const kept = (await stored(id)).find(({ type }) => type === 'session.checkpointed');
    expect(child.forked_from).toMatchObject({
      checkpoint: { version: kept?.data['through_version'] },
      missing_tool_use_ids: [],
    });
    await call('DELETE', `/v1/sessions/${id}`);
    await until('the end of the other', async () => (await sandboxOf(id)).status === 'destroyed');
    const [text] = await turn(child.id, 'RUN[ls; cat file ~/note; echo mine > file]');
    expect(text).toMatch(/\n\nfile\nfirst\nat home\n$/);
    expect(await turn(child.id, 'RUN[cat file]')).toEqual([expect.stringMatching(/mine\n$/)]);
  }, 60_000);

  it('between two checkpoints has the files of the one before, and its agent is told which calls are missing', async () => {
    const id = await newSession();
    await turn(id, 'RUN[echo kept > kept]');
    await turn(id, 'WRITE[lost|x] RUN[true]');
    const [, write] = (await stored(id)).filter(({ type }) => type === 'agent.tool_result');
    const child = (await call('POST', `/v1/sessions/${id}/fork`, { at_version: Number(write?.version) })) as Forked;
    const missing = [write?.data['tool_use_id']];
    expect(child.forked_from.missing_tool_use_ids).toEqual(missing);
    const [text] = await turn(child.id, 'RUN[ls]');
    expect(text).toBe(
      `[The sandbox was started anew with its files as they were kept last. What these earlier calls did to files is missing: ${missing.join(', ')}. Check what you need, and do it again if it is right to. Processes that ran in it are gone.]\n\nkept\n`,
    );
  }, 60_000);
});

/** Processes and files at once, in the middle of what they do. */
async function kill(id: string): Promise<void> {
  const sandbox = await sandboxOf(id);
  if (onCluster) {
    const [{ namespace, pod }] = (await platform.query('select namespace, pod from sandboxes where id = $1', [
      sandbox.id,
    ])) as [{ namespace: string; pod: string }];
    execFileSync('kubectl', ['delete', 'pod', '-n', namespace, pod, '--grace-period=0', '--force'], {
      env: { ...process.env, ...platform.env },
    });
    return;
  }
  const root = join(platform.stateDir, 'sandboxes', sandbox.id);
  for (const line of readFileSync(join(root, 'runner.pid'), 'utf8').trim().split('\n')) {
    try {
      process.kill(Number(line.split(' ')[0]), 'SIGKILL');
    } catch {
      // The other one took it along.
    }
  }
  await sleep(200);
  rmSync(root, { recursive: true });
}

describe('what is kept', () => {
  it('cannot be read where it lies', async () => {
    const id = await newSession();
    await turn(id, `RUN[echo ${CANARY} > canary]`);
    const packs = (await platform.query(
      'select blob from checkpoint_packs p join checkpoints c on p.digest = any (c.packs) where c.session_id = $1',
      [id],
    )) as { blob: string }[];
    expect(packs.length).toBeGreaterThan(0);
    const blobs = readdirSync(join(platform.stateDir, 'blobs'), { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile())
      .map((entry) => join(entry.parentPath, entry.name));
    expect(packs.every(({ blob }) => blobs.some((path) => path.endsWith(blob)))).toBe(true);
    expect(blobs.filter((path) => readFileSync(path).includes(CANARY))).toEqual([]);
  }, 60_000);

  it('has a bound: above it the turn ends all the same, and says so', async () => {
    const id = await newSession();
    await turn(id, 'RUN[touch $(seq 400)]');
    const failed = (await stored(id)).find(({ type }) => type === 'session.checkpoint_failed');
    expect(failed?.data['code']).toBe('checkpoint.over-limit');
    const shown = (await list(id)).find(({ type }) => type === 'session.error');
    expect(shown?.error?.message).toMatch(/holds more than 300 files/);
    await turn(id, 'RUN[rm -f *; echo less > less]');
    expect((await stored(id)).findLast(({ type }) => /checkpoint/.test(type))?.type).toBe('session.checkpointed');
  }, 60_000);

  it('is shared in a context as its folder is: what one session left another finds in a new folder', async () => {
    const [one, two] = [await newSession({ context_key: 'shared' }), await newSession({ context_key: 'shared' })];
    await turn(one, 'RUN[echo one > one; echo mine > ~/mine]');
    await turn(two, 'RUN[echo two > two; cat one]');
    if (onCluster) return;
    await loseRested(one);
    await until('rest', async () => (await sandboxOf(two)).status === 'suspended');
    rmSync(join(platform.stateDir, 'contexts'), { recursive: true });
    rmSync(join(platform.stateDir, 'sandboxes'), { recursive: true, force: true });
    expect(await turn(one, 'RUN[cat one two ~/mine]')).toEqual([expect.stringMatching(/\n\none\ntwo\nmine\n$/)]);
  }, 120_000);

  it('goes with its session', async () => {
    const id = await newSession();
    await turn(id, 'RUN[echo 1 > a]');
    const count = async (): Promise<unknown> =>
      (await platform.query('select count(*)::int as n from checkpoints where session_id = $1', [id]))[0]?.['n'];
    expect(await count()).toBe(1);
    await call('DELETE', `/v1/sessions/${id}`);
    await until('their end', async () => (await count()) === 0);
  }, 60_000);
});
