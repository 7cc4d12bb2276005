import { existsSync, readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { sandboxWith, startPlatform, type TestPlatform } from '@holdfast/testing';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import pg from 'pg';

interface WireEvent {
  readonly id: string;
  readonly type: string;
  readonly is_error?: boolean;
  readonly content?: { readonly text: string }[];
  readonly tool_use_id?: string;
}

/** The same specs run on a cluster that the environment names. */
const onCluster = process.env['SANDBOX_PROVIDER'] === 'kubernetes';
let platform: TestPlatform;
let agentId: string;
beforeAll(async () => {
  platform = await startPlatform({
    CONTAINER_ENV_COLOUR: 'teal',
    CONTAINER_ENV_PATH: '/evil',
    TOOL_DEFAULT_TIMEOUT_MS: '30000',
    SANDBOX_REPLICAS: '2',
    SANDBOX_MEMORY_BYTES: String(300 * 1024 ** 2),
    SANDBOX_WORKSPACE_BYTES: String(100 * 1024 ** 2),
    SANDBOX_IDLE_MS: '20000',
  });
  agentId = (
    (await post('/v1/agents', { name: 'tools', model: 'demo', tools: [{ type: 'agent_toolset_20260401' }] })) as {
      id: string;
    }
  ).id;
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
const post = (path: string, json: unknown) => call('POST', path, json);
const newSession = async (rest: object = {}): Promise<string> =>
  ((await post('/api/sessions', { agent_id: agentId, ...rest })) as { id: string }).id;
const say = (id: string, text: string) =>
  post(`/v1/sessions/${id}/events`, { events: [{ type: 'user.message', content: [{ type: 'text', text }] }] });
const list = async (id: string, types = ''): Promise<WireEvent[]> =>
  ((await call('GET', `/v1/sessions/${id}/events?limit=1000${types}`)) as { data: WireEvent[] }).data;

async function idle(id: string, timeoutMs = 40_000): Promise<void> {
  for (const deadline = Date.now() + timeoutMs; Date.now() < deadline; await sleep(30)) {
    const answer = await fetch(`${platform.apiUrl}/v1/sessions/${id}`, {
      headers: { 'x-api-key': platform.apiKey },
    }).catch(() => null);
    if (answer?.ok === true && ((await answer.json()) as { status: string }).status === 'idle') return;
  }
  throw new Error(`not idle: ${JSON.stringify((await list(id)).map(({ type }) => type))}`);
}
/** Sends a message and returns the text and error flag of the results that it led to. */
async function results(id: string, text: string): Promise<{ text: string; isError: boolean }[]> {
  const before = (await list(id, '&types[]=agent.tool_result')).length;
  await say(id, text);
  await idle(id);
  return (await list(id, '&types[]=agent.tool_result')).slice(before).map((event) => ({
    text: event.content?.map((block) => block.text).join('') ?? '',
    isError: event.is_error === true,
  }));
}
const run = async (id: string, command: string) =>
  (await results(id, `RUN[${command}]`))[0] ?? { text: 'no result', isError: true };

/** The sandbox service, all of it. */
const killService = (): void => {
  for (const name of ['sandbox', 'sandbox-2']) platform.kill(name);
};
/** The pid of the runner as the sandbox itself sees it: the child of the first process, which names it too. */
const RUNNER = "$(pgrep -f '[r]unner.mjs$' | sed -n 2p)";
const gone = (pids: readonly number[]): boolean => pids.every((pid) => !existsSync(`/proc/${pid}`));
async function until(what: () => boolean | Promise<boolean>, timeoutMs: number): Promise<boolean> {
  for (const deadline = Date.now() + timeoutMs; Date.now() < deadline; await sleep(100)) if (await what()) return true;
  return false;
}
async function sandboxEvents(type: string): Promise<Record<string, unknown>[]> {
  const client = new pg.Client({ connectionString: platform.databaseUrl });
  await client.connect();
  try {
    const { rows } = await client.query<{ data: Record<string, unknown> }>(
      'select data from events where type = $1 order by position',
      [type],
    );
    return rows.map(({ data }) => data);
  } finally {
    await client.end();
  }
}

describe('tools in a sandbox', () => {
  it('run, keep directory, variables and files, and see the configured environment', async () => {
    const id = await newSession();
    const found = await results(
      id,
      'WRITE[notes/a.txt|one] RUN[cd notes; export MARK=42; cat a.txt] RUN[pwd; echo $MARK $COLOUR]',
    );
    expect(found.map(({ text }) => text.trim())).toEqual([
      'Wrote 3 bytes to /workspace/notes/a.txt.',
      'one',
      '/workspace/notes\n42 teal',
    ]);
    expect((await run(id, 'exit 3')).text).toMatch(/exit code 3/);
    expect(await run(id, 'echo $PATH')).toMatchObject({
      text: expect.stringMatching(/^(?!.*evil)\S*:\/usr\/bin:/),
      isError: false,
    });
  }, 60_000);

  it('show a bounded part of long output and keep the whole for the agent', async () => {
    const id = await newSession();
    const shown = await run(id, 'seq 1 20000');
    expect(shown.text.length).toBeLessThan(31_000);
    const path = /the whole output is in (\S+)]/.exec(shown.text)?.[1] ?? 'none';
    expect((await run(id, `tail -1 ${path}; wc -l < ${path}`)).text.split('\n').slice(0, 2)).toEqual([
      '20000',
      '20000',
    ]);
  }, 60_000);

  it('are killed with everything they started, a fork bomb too', async () => {
    const id = await newSession();
    await say(
      id,
      'RUN[sleep 1000 & setsid sleep 1000 & (setsid env -i sleep 1000 &); bomb() { bomb & bomb; }; bomb 2>/dev/null & sleep 1000]',
    );
    await sleep(2_000);
    await post(`/v1/sessions/${id}/events`, { events: [{ type: 'user.interrupt' }] });
    await idle(id);
    expect((await run(id, 'ps -e -o args | grep -c "[s]leep 1000"; ps -e | wc -l')).text).toMatch(/^0\n[5-9]\n/);
  }, 60_000);

  it('leave what they start in the background running, until the session is idle for long', async () => {
    const id = await newSession();
    await run(id, 'cd /tmp; greeting=hello; (while echo x >> /workspace/beats.txt; do sleep 0.2; done) & echo back');
    const { workspace = '', pids = [] } = sandboxWith(platform, 'beats.txt') ?? {};
    const beats = (): number => readFileSync(join(workspace, 'beats.txt'), 'utf8').length;
    const before = beats();
    // Killed with -9, the service finds it again, watches it, and ends it when it is idle.
    killService();
    expect(await until(() => beats() > before + 4, 5_000)).toBe(true);
    expect(await until(() => gone(pids), 40_000)).toBe(true);
    expect((await sandboxEvents('sandbox.suspended')).length).toBeGreaterThan(0);
    expect((await run(id, 'echo $greeting $PWD; ls /workspace')).text).toBe('hello /tmp\nbeats.txt\n');
  }, 90_000);
});

describe('isolation', () => {
  it('leaves nothing of the host or of other sessions within reach', async () => {
    const [mine, other] = [await newSession(), await newSession()];
    await run(other, 'echo secret-of-other > /workspace/secret.txt; echo secret-of-other > ~/secret.txt');
    const ports = ['POSTGRES_PORT', 'NATS_PORT', 'API_PORT', 'HUB_PORT', 'DEMO_GATEWAY_PORT'].map(
      (name) => platform.env[name],
    );
    const probes: [string, string, RegExp][] = [
      ['capabilities', 'grep -E "Cap(Eff|Bnd|Prm)" /proc/self/status | grep -vc 0000000000000000', /^0/],
      ['kernel settings', 'echo x > /proc/sys/kernel/core_pattern && echo WRITTEN', /^(?!.*WRITTEN)/s],
      [
        'root file system',
        'touch /x /usr/x /etc/x /dev/x /run/x; ls /x /usr/x /etc/x /dev/x /run/x 2>/dev/null',
        /^(?!\/)/,
      ],
      ['host processes', 'ps -e -o args | grep -cE "[p]ostgres|[n]ats-server|[s]upervisor"', /^0/],
      [
        'host files',
        `ls -d ${platform.stateDir} /root/. /home/* /var/lib/kubelet 2>/dev/null; cat ${platform.env['HOLDFAST_ENV_FILE']}`,
        /^\/home\/agent\n(?!.*hf_)/s,
      ],
      [
        'other sessions',
        'grep -rl secret-of-other / --include=secret.txt 2>/dev/null | head',
        /^\[exit|^\n|^\(no output\)|^$/,
      ],
      [
        'environment of the platform',
        'cat /proc/*/environ | tr "\\\\0" "\\\\n" | grep -cE "hf[_]|DATABASE[_]URL|NATS[_]|PASSWOR[D]"',
        /^0$/m,
      ],
      [
        'network',
        `for port in ${ports.join(' ')}; do (exec 3<>/dev/tcp/127.0.0.1/$port) 2>/dev/null && echo OPEN $port; done; ls /sys/class/net 2>/dev/null; cat /proc/net/dev | grep -vc lo:`,
        /^(?!.*OPEN)/s,
      ],
      [
        'the runner: memory, files, environment, debugger',
        `r=${RUNNER}; for name in environ maps auxv mem; do cat /proc/$r/$name > /dev/null && echo READ $name; done 2>/dev/null; ls /proc/$r/fd /proc/$r/cwd && echo LISTED; kill -USR1 $r; sleep 0.3; (exec 3<>/dev/tcp/127.0.0.1/9229) 2>/dev/null && echo DEBUGGER; (unset HTTP_PROXY http_proxy; curl -s http://127.0.0.1:9229/json); tr "\\0" " " < /proc/$r/cmdline | grep -c runner.mjs`,
        /^(?!.*(READ|LISTED|DEBUGGER|inspector)).*^1$/ms,
      ],
      [
        'the journal and what the platform has open',
        'find / -name "journal.jsonl" -not -path "/proc/*" 2>/dev/null | wc -l; ls /proc/self/fd | grep -vc "^[0123]$"; readlink /proc/[0-9]*/fd/* | grep -c journal',
        /^0\n0\n0$/m,
      ],
      ['namespaces of its own to attack the kernel from', 'unshare -Ur id && echo MADE', /^(?!.*MADE)/s],
      [
        'platform over the proxy',
        `curl -s -o /dev/null -w "%{http_code}" -m 5 --noproxy "" http://127.0.0.1:${platform.env['API_PORT']}/healthz; curl -s -m 5 --noproxy "" http://169.254.169.254/`,
        /^403/,
      ],
    ];
    for (const [what, command, expected] of probes) {
      const { text } = await run(mine, command);
      expect([what, text]).toEqual([what, expect.stringMatching(expected)]);
    }
  }, 120_000);

  it('runs every sandbox under an unprivileged host uid, on one machine each under its own (X1)', async () => {
    const [a, b] = [await newSession(), await newSession()];
    await Promise.all([run(a, 'echo > x1-a.txt'), run(b, 'echo > x1-b.txt')]);
    const uids = ['x1-a.txt', 'x1-b.txt'].map((file) => {
      const status = readFileSync(`/proc/${sandboxWith(platform, file)?.init}/status`, 'utf8');
      return /^Uid:\s+(\d+)/m.exec(status)?.[1];
    });
    // Pods share one uid and are kept apart by their namespaces; bubblewrap has only the uid against other programs.
    if (process.getuid?.() === 0 && !onCluster) expect(new Set(uids).size).toBe(2);
    expect(uids).not.toContain('0');
  }, 60_000);

  it('bounds what a sandbox may take', async () => {
    const id = await newSession();
    expect(
      (await run(id, 'df -B1 --output=size /tmp /dev/shm | tail -2 | tr -d " "')).text
        .split('\n')
        .slice(0, 2)
        .map(Number)
        .every((size) => size > 0 && size <= 512 * 1024 * 1024),
    ).toBe(true);
    // On a machine the limit is the sandbox's, on a node the kubelet's; either way they come to an end.
    const forks =
      'count = 0\\ntry:\\n while count < 3000:\\n  count += 1\\n  if os.fork() == 0: time.sleep(2); os._exit(0)\\nexcept BlockingIOError: print(1)';
    expect((await run(id, `python3 -c "import os, time; exec('${forks}')"; sleep 3; ulimit -c`)).text).toBe('1\n0\n');
    // The bomb has a bound of its own, for machines whose cgroups cannot be written; the service says that at its start.
    const { text } = await run(id, 'ulimit -v 1000000; tail /dev/zero; echo code $?');
    expect(text).toMatch(/"missing":\[[^\]]*"memory"/.test(platform.log('sandbox')) ? /code [1-9]/ : /code 137/);
    expect((await run(id, 'echo alive')).text).toBe('alive\n');
  }, 60_000);

  it('kills what writes more than its bound, in the workspace or at home, in a call or after it', async () => {
    const id = await newSession();
    expect(await run(id, 'head -c 400000000 /dev/zero > fill; sleep 20')).toMatchObject({
      text: expect.stringMatching(/holds \d+ bytes, above its bound of 104857600 bytes; what ran was killed/),
      isError: true,
    });
    await run(id, 'rm fill; (sleep 1.5; head -c 400000000 /dev/zero > ~/fill; sleep 100) > /dev/null 2>&1 & echo left');
    // Nobody calls meanwhile: it is noticed because the disk fills.
    await sleep(6_000);
    expect((await run(id, 'ps -e -o args | grep -c "[s]leep 100"')).text).toMatch(/^0/);
  }, 60_000);

  it('lets sessions of one context share the workspace folder and nothing else', async () => {
    const [a, b, c] = [
      await newSession({ context_key: 'team/one' }),
      await newSession({ context_key: 'team/one' }),
      await newSession({ context_key: 'team/two' }),
    ];
    await run(a, 'echo shared > plan.txt; echo own > ~/own.txt; sleep 300 & echo started');
    expect(
      (await run(b, 'cat plan.txt; echo more >> plan.txt; ls ~; ps -e -o args | grep -c "[s]leep 300"')).text,
    ).toMatch(/^shared\n0/);
    expect((await run(a, 'cat plan.txt')).text).toMatch(/^shared\nmore/);
    expect((await run(c, 'ls')).text.trim()).toMatch(/^(\(no output\))?$/);
    // Not a stranger's repository, although its files have another owner.
    await run(a, 'git init -q repo; cp /bin/bash borrowed; chmod 4755 borrowed');
    expect((await run(b, 'git -C repo rev-parse --is-inside-work-tree')).text).toBe('true\n');
    expect((await run(b, 'id -u; ./borrowed -p -c "id -u"')).text).toMatch(/^(\d+)\n\1\n$/);
  }, 60_000);
});

describe('the network', () => {
  it('is the environment’s allowed hosts and no private address', async () => {
    const local = createServer((_request, response) => response.end('inside'));
    await new Promise<void>((resolve) => local.listen(0, '127.0.0.1', resolve));
    const environment = (await post('/v1/environments', {
      name: 'limited',
      config: { type: 'cloud', networking: { type: 'limited', allowed_hosts: ['allowed.invalid', 'localhost'] } },
    })) as { id: string };
    const id = await newSession({ environment_id: environment.id });
    expect((await run(id, 'curl -s -m 5 http://other.invalid/')).text).toMatch(/does not allow other.invalid/);
    expect((await run(id, 'curl -s -m 5 -p -x $HTTP_PROXY https://other.invalid/ -w "%{http_connect}"')).text).toMatch(
      /403/,
    );
    expect((await run(id, 'curl -s -m 5 --noproxy "" http://localhost:1/')).text).toMatch(/not on the public internet/);
    expect((await run(id, 'curl -s -m 5 http://allowed.invalid/')).text).toMatch(/cannot be resolved/);
    local.close();
  }, 60_000);
});

describe('kill -9', () => {
  const lines = (text: string): string[] => text.trim().split('\n');

  it('of the sandbox service in the middle of a call: the call’s one result arrives', async () => {
    const id = await newSession();
    await run(id, 'true');
    await say(id, 'RUN[echo x >> effects-1.txt; sleep 3; echo finished] RUN[cat effects-1.txt]');
    await sleep(1_000);
    killService();
    await idle(id);
    const found = (await list(id, '&types[]=agent.tool_result')).map((event) => event.content?.[0]?.text.trim());
    expect(found.slice(1)).toEqual(['finished', 'x']);
  }, 90_000);

  it('of the runner in the middle of a call: outcome unknown, never run twice', async () => {
    const id = await newSession();
    await run(id, 'true');
    await say(id, 'RUN[echo x >> effects.txt; sleep 20; echo finished] RUN[cat effects.txt]');
    await sleep(1_000);
    // The first process of the sandbox's namespace: all of it dies at once.
    process.kill(sandboxWith(platform, 'effects.txt')?.init ?? 0, 'SIGKILL');
    await idle(id, 60_000);
    const found = await list(id, '&types[]=agent.tool_result');
    expect(found[1]).toMatchObject({
      is_error: true,
      content: [{ text: expect.stringMatching(/[Oo]utcome unknown/) }],
    });
    expect(lines(found[2]?.content?.[0]?.text ?? '')).toEqual(['x']);
  }, 120_000);

  it('between two calls: the next one runs, on the same files', async () => {
    const id = await newSession();
    await run(id, 'echo x > between.txt');
    for (let n = 0; n < 3; n++) {
      process.kill(sandboxWith(platform, 'between.txt')?.init ?? 0, 'SIGKILL');
      expect((await results(id, 'RUN[cat between.txt]'))[0]?.text).toMatch(/(^|\n)x\n$/);
    }
  }, 90_000);

  it('or a stop of the runner by the code that it runs: outcome unknown, and the next call has a new one', async () => {
    const id = await newSession();
    expect(
      (await results(id, `RUN[(sleep 0.3; kill -STOP ${RUNNER}) & sleep 30] RUN[echo alive]`)).map(({ text }) => text),
      // A pod that is replaced is another one, which had no files to keep; that is told.
    ).toEqual([expect.stringMatching(/[Oo]utcome unknown/), expect.stringMatching(/(^|\n\n)alive\n$/)]);
  }, 90_000);

  it('of the session service and the sandbox service at once', async () => {
    const ids = await Promise.all(Array.from({ length: 5 }, () => newSession()));
    await Promise.all(
      ids.map((id) => say(id, 'RUN[echo a >> log.txt; sleep 2] RUN[echo b >> log.txt; sleep 2] RUN[cat log.txt]')),
    );
    await sleep(2_000);
    platform.kill('session');
    killService();
    await sleep(2_500);
    platform.kill('session');
    for (const id of ids) {
      await idle(id, 90_000);
      const last = (await list(id, '&types[]=agent.tool_result')).at(-1);
      expect(lines(last?.content?.[0]?.text ?? '')).toEqual(['a', 'b']);
    }
  }, 180_000);

  it('of everything at once: the next bin/up puts it right', async () => {
    const id = await newSession();
    await run(id, 'echo kept > kept.txt');
    await say(id, 'SLOW[10] RUN[cat kept.txt]');
    await sleep(500);
    for (const name of [
      'supervisor',
      'session',
      'gateway-api',
      'sandbox',
      'sandbox-2',
      'nats',
      'postgres',
      'demo-gateway',
    ])
      platform.kill(name);
    await sleep(300);
    await platform.up('--detach');
    await idle(id, 60_000);
    expect((await list(id, '&types[]=agent.tool_result')).at(-1)?.content?.[0]?.text.trim()).toBe('kept');
  }, 180_000);
});

describe('the end of a session', () => {
  it('ends its processes and removes its files', async () => {
    const id = await newSession();
    await run(id, 'echo x > /workspace/only-here.txt; sleep 500 > /dev/null 2>&1 &');
    const { pids = [], workspace = '' } = sandboxWith(platform, 'only-here.txt') ?? {};
    expect(pids.length).toBeGreaterThan(1);
    await post(`/v1/sessions/${id}/archive`, {});
    expect(await until(() => !existsSync(join(workspace, 'only-here.txt')), 20_000)).toBe(true);
    expect(await until(() => gone(pids), 5_000)).toBe(true);
  }, 60_000);
});
