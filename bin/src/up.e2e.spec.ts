import { chownSync, existsSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { startPlatform, TestClient, type TestPlatform, userMessage } from '@holdfast/testing';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

it('refuses a port that another program has, by the name of its setting, whatever answers there', async () => {
  const other = createServer((_request, response) => response.end('ok'));
  await new Promise<void>((resolve) => other.listen(0, '127.0.0.1', resolve));
  const { port } = other.address() as AddressInfo;
  try {
    await expect(startPlatform({ DEMO_GATEWAY_PORT: String(port) })).rejects.toMatchObject({
      stderr: expect.stringContaining(`port ${port} is in use by another program: set DEMO_GATEWAY_PORT`),
    });
  } finally {
    other.close();
  }
}, 240_000);

describe('a supervisor that was killed', () => {
  let platform: TestPlatform;
  const run = (...parts: string[]): string => join(platform.stateDir, 'run', ...parts);
  const names = (): string[] =>
    readdirSync(run())
      .filter((file) => file.endsWith('.pid'))
      .map((file) => file.slice(0, -'.pid'.length))
      .sort((a, b) => a.localeCompare(b));
  const pids = (): Record<string, number> =>
    Object.fromEntries(names().map((name) => [name, platform.pid(name)] as const));
  const kept = (): Record<string, number> => ({ ...pids(), supervisor: 0 });
  const expectWorking = async (): Promise<void> => {
    const status = await platform.up('--status').catch((error: { stdout?: string }) => error.stdout);
    expect(status).not.toMatch(/not (running|ready)/);
    const client = new TestClient(platform);
    const id = await client.session();
    await client.json(`/v1/sessions/${id}/events`, { json: { events: [userMessage('hello')] } });
    expect((await client.untilIdle(id, 20_000)).some(({ type }) => type === 'agent.message')).toBe(true);
  };
  beforeAll(async () => {
    platform = await startPlatform();
  }, 240_000);
  afterAll(async () => {
    await platform.stop();
  }, 60_000);

  it('leaves what runs to the next one, which keeps it running', async () => {
    const before = kept();
    platform.kill('supervisor');
    await platform.up('--detach');
    expect(kept()).toEqual(before);
    const gateway = platform.pid('gateway-api');
    platform.kill('gateway-api');
    await platform.up('--detach');
    expect(platform.pid('gateway-api')).not.toBe(gateway);
    await expectWorking();
  }, 120_000);

  it('leaves nothing unfound, also what it had started and not recorded yet', async () => {
    const before = kept();
    platform.kill('supervisor');
    for (const file of readdirSync(run())) if (/\.(pid|json)$/.test(file)) rmSync(run(file));
    writeFileSync(run('nats.json'), '{"pid":');
    await platform.up('--detach');
    expect(kept()).toEqual(before);
    await expectWorking();
  }, 120_000);

  it('with everything else: one command puts it right', async () => {
    for (let n = 0; n < 2; n++) {
      for (const name of names()) process.kill(platform.pid(name), 'SIGKILL');
      await platform.up('--detach');
      await expectWorking();
    }
  }, 180_000);

  it('while it starts is reported, and the next start finds its way', async () => {
    for (const name of names()) process.kill(platform.pid(name), 'SIGKILL');
    rmSync(run('supervisor.pid'));
    const starting = platform.up('--detach');
    const outcome = starting.then(
      () => 'ready',
      (error: { stderr?: string }) => error.stderr ?? '',
    );
    while (!existsSync(run('supervisor.pid'))) await sleep(10);
    platform.kill('supervisor');
    expect(await outcome).toMatch(/the supervisor ended/);
    await platform.up('--detach');
    await expectWorking();
  }, 180_000);

  it('may be started by two at once: one supervisor stays and both commands return', async () => {
    for (const name of names()) process.kill(platform.pid(name), 'SIGKILL');
    await Promise.all([platform.up('--detach'), platform.up('--detach')]);
    await expectWorking();
    const log = platform.log('supervisor');
    expect(log.slice(log.lastIndexOf('starting Postgres')).match(/starting Postgres/g)).toHaveLength(1);
    await platform.up('--down');
    expect(names()).toEqual([]);
    await platform.up('--detach');
    await expectWorking();
  }, 240_000);

  it('is no obstacle when another program has the pid of the Postgres that was killed', async () => {
    await platform.up('--down');
    const lock = join(platform.stateDir, 'data', 'postgres', 'data', 'postmaster.pid');
    writeFileSync(lock, `${process.pid}\n`);
    const { uid, gid } = statSync(join(lock, '..'));
    chownSync(lock, uid, gid);
    await platform.up('--detach');
    await expectWorking();
  }, 120_000);
});
