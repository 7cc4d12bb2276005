import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { startPlatform, type TestPlatform } from '@holdfast/testing';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

interface WireEvent {
  readonly id: string;
  readonly type: string;
  readonly is_error?: boolean;
  readonly content?: { readonly text: string }[];
  readonly tool_use_id?: string;
}

let platform: TestPlatform;
let agentId: string;
beforeAll(async () => {
  platform = await startPlatform({
    CONTAINER_ENV_COLOUR: 'teal',
    CONTAINER_ENV_PATH: '/evil',
    TOOL_DEFAULT_TIMEOUT_MS: '30000',
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
      text: expect.stringMatching(/^\/usr\/local\/bin:\/usr\/bin:\/bin/),
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

  it('are killed with everything they started when they take too long', async () => {
    const id = await newSession();
    await say(id, 'RUN[sleep 1000 & setsid sleep 1000 & sleep 1000]');
    await sleep(1_500);
    await post(`/v1/sessions/${id}/events`, { events: [{ type: 'user.interrupt' }] });
    await idle(id);
    expect((await run(id, 'ps -e -o args | grep -c "[s]leep 1000"')).text).toMatch(/^0/);
  }, 60_000);
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
        `ls -d ${platform.stateDir} /root/. /home/* /var/lib 2>/dev/null; cat ${platform.env['HOLDFAST_ENV_FILE']}`,
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
        /^0/,
      ],
      [
        'network',
        `for port in ${ports.join(' ')}; do (exec 3<>/dev/tcp/127.0.0.1/$port) 2>/dev/null && echo OPEN $port; done; ls /sys/class/net 2>/dev/null; cat /proc/net/dev | grep -vc lo:`,
        /^(?!.*OPEN)/s,
      ],
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

  it('gives every sandbox an unprivileged host uid of its own (X1)', () => {
    const uids = readdirSync(join(platform.stateDir, 'sandboxes')).map((name) => {
      const [, inner] = readFileSync(join(platform.stateDir, 'sandboxes', name, 'runner.pid'), 'utf8').split('\n');
      return /^Uid:\s+(\d+)/m.exec(readFileSync(`/proc/${inner?.split(' ')[0]}/status`, 'utf8'))?.[1];
    });
    expect(uids.length).toBeGreaterThan(2);
    if (process.getuid?.() === 0) expect(new Set(uids).size).toBe(uids.length);
    expect(uids).not.toContain('0');
  });

  it('bounds what a sandbox may take', async () => {
    const id = await newSession();
    expect(
      (await run(id, 'df -B1 --output=size /tmp /dev/shm | tail -2 | tr -d " "')).text
        .split('\n')
        .slice(0, 2)
        .map(Number)
        .every((size) => size > 0 && size <= 512 * 1024 * 1024),
    ).toBe(true);
    expect((await run(id, 'ulimit -u; ulimit -c')).text).toMatch(/^512\n0/);
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
    await say(id, 'RUN[echo x >> effects.txt; sleep 3; echo finished] RUN[cat effects.txt]');
    await sleep(1_000);
    platform.kill('sandbox');
    await idle(id);
    const found = (await list(id, '&types[]=agent.tool_result')).map((event) => event.content?.[0]?.text.trim());
    expect(found.slice(1)).toEqual(['finished', 'x']);
  }, 90_000);

  it('of the runner in the middle of a call: outcome unknown, never run twice', async () => {
    const id = await newSession();
    await run(id, 'true');
    await say(id, 'RUN[echo x >> effects.txt; sleep 20; echo finished] RUN[cat effects.txt]');
    await sleep(1_000);
    const sandboxes = join(platform.stateDir, 'sandboxes');
    const home = readdirSync(sandboxes)
      .map((name) => join(sandboxes, name))
      .find(
        (dir) =>
          existsSync(join(dir, 'workspace', 'effects.txt')) &&
          readFileSync(join(dir, 'state', 'journal.jsonl'), 'utf8')
            .split('\n')
            .filter((line) => line.includes('"started"')).length === 2,
      );
    // The first process of the sandbox's namespace: all of it dies at once.
    process.kill(Number(lines(readFileSync(join(home ?? '', 'runner.pid'), 'utf8'))[1]?.split(' ')[0]), 'SIGKILL');
    await idle(id, 60_000);
    const found = await list(id, '&types[]=agent.tool_result');
    expect(found[1]).toMatchObject({
      is_error: true,
      content: [{ text: expect.stringMatching(/[Oo]utcome unknown/) }],
    });
    expect(lines(found[2]?.content?.[0]?.text ?? '')).toEqual(['x']);
  }, 120_000);

  it('of the session service and the sandbox service at once', async () => {
    const ids = await Promise.all(Array.from({ length: 5 }, () => newSession()));
    await Promise.all(
      ids.map((id) => say(id, 'RUN[echo a >> log.txt; sleep 2] RUN[echo b >> log.txt; sleep 2] RUN[cat log.txt]')),
    );
    await sleep(2_000);
    platform.kill('session');
    platform.kill('sandbox');
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
    for (const name of ['supervisor', 'session', 'gateway-api', 'sandbox', 'nats', 'postgres', 'demo-gateway'])
      platform.kill(name);
    await sleep(300);
    await platform.up('--detach');
    await idle(id, 60_000);
    expect((await list(id, '&types[]=agent.tool_result')).at(-1)?.content?.[0]?.text.trim()).toBe('kept');
  }, 180_000);
});

describe('the end of a session', () => {
  it('removes its sandbox and its files', async () => {
    const id = await newSession();
    await run(id, 'echo x > /workspace/only-here.txt');
    const holds = (): boolean =>
      readdirSync(join(platform.stateDir, 'sandboxes')).some((name) =>
        existsSync(join(platform.stateDir, 'sandboxes', name, 'workspace', 'only-here.txt')),
      );
    expect(holds()).toBe(true);
    await post(`/v1/sessions/${id}/archive`, {});
    for (const deadline = Date.now() + 20_000; holds() && Date.now() < deadline; ) await sleep(100);
    expect(holds()).toBe(false);
  }, 60_000);
});
