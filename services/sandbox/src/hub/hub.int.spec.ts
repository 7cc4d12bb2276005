import { createHash, generateKeyPairSync, type KeyObject, sign } from 'node:crypto';
import { mkdirSync, mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import type { ExecBody, HubMessage, RunnerMessage } from '@holdfast/contracts';
import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import { WebSocket } from 'ws';
import { Hub } from './hub.ts';

const TOKEN = 'the-token';
let folder: string;
let hub: Hub;
let refused: string[];
let recorded: { journalId: string; publicKey: string }[];
let kept: string[];
let failToRecord: boolean;
let linked: number;

async function open(publicKey: string | null = null): Promise<void> {
  hub = new Hub({
    linkDir: folder,
    proof: { tokenHash: createHash('sha256').update(TOKEN).digest('hex'), publicKey },
    env: { COLOUR: 'teal' },
    record: async (facts) => {
      await sleep(20);
      if (failToRecord) throw new Error('Postgres is away');
      recorded.push(facts);
    },
    onLinked: () => linked++,
    onLost: () => undefined,
    onRefused: (reason) => refused.push(reason),
    keep: async (pieces) => {
      const whole = await text(pieces).catch(() => 'broken off');
      kept.push(whole);
      return whole === 'broken off' ? null : { digest: whole, sizeBytes: whole.length };
    },
  });
  await hub.listen();
}
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'holdfast-hub-'));
  [refused, recorded, kept, failToRecord, linked] = [[], [], [], false, 0];
});
afterEach(async () => {
  await hub.close();
  rmSync(folder, { recursive: true });
});

const spki = (key: KeyObject): string => key.export({ type: 'spki', format: 'der' }).toString('base64');
/** What a runner, or somebody who plays one, does on the socket. */
class Dialler {
  readonly keys = generateKeyPairSync('ed25519');
  readonly heard: HubMessage[] = [];
  readonly socket: WebSocket;
  readonly closed: Promise<void>;

  constructor(answer: (nonce: string, own: Dialler) => string | null, linkDir = folder) {
    this.socket = new WebSocket(`ws+unix://${join(linkDir, 'hub.sock')}:/runner-link`);
    this.closed = new Promise((resolve) => this.socket.on('close', () => resolve()));
    this.socket.on('error', () => undefined);
    this.socket.on('message', (data) => {
      const message = JSON.parse(String(data as Buffer)) as HubMessage;
      this.heard.push(message);
      const reply = message.type === 'challenge' ? answer(message.nonce, this) : null;
      if (reply !== null) this.socket.send(reply);
    });
  }
  say(message: RunnerMessage): void {
    this.socket.send(JSON.stringify(message));
  }
  async hears(type: HubMessage['type']): Promise<void> {
    for (const deadline = Date.now() + 3_000; !this.heard.some((one) => one.type === type); await sleep(5))
      if (Date.now() > deadline) throw new Error(`heard no ${type}`);
  }
}
const hello =
  (changes: Partial<Extract<RunnerMessage, { type: 'hello' }>> = {}, keys?: Dialler['keys']) =>
  (nonce: string, own: Dialler): string => {
    const { publicKey, privateKey } = keys ?? own.keys;
    const signature = sign(null, Buffer.from(nonce), privateKey).toString('base64');
    return JSON.stringify({
      ...{ type: 'hello', publicKey: spki(publicKey), signature, token: TOKEN, journalId: 'j1' },
      ...changes,
    });
  };
const call: ExecBody = { sessionId: 's', callId: 'c1', generation: 1, tool: 'bash', input: {}, timeoutMs: 1_000 };

describe('a link', () => {
  it('stands once its key is recorded, and the environment comes with the welcome', async () => {
    await open();
    const runner = new Dialler(hello());
    await runner.hears('welcome');
    expect(recorded).toEqual([{ journalId: 'j1', publicKey: spki(runner.keys.publicKey) }]);
    expect(runner.heard[1]).toEqual({ type: 'welcome', env: { COLOUR: 'teal' } });
    expect([hub.linked, hub.journalId, linked]).toEqual([true, 'j1', 1]);
  });

  it('is not welcome while its key cannot be recorded: it still has its token', async () => {
    await open();
    failToRecord = true;
    const runner = new Dialler(hello());
    await runner.closed;
    expect([runner.heard.map(({ type }) => type), hub.linked, refused]).toEqual([['challenge'], false, []]);
  });

  it('needs the token once, and from then on the key that it was bound to (X5)', async () => {
    await open();
    const runner = new Dialler(hello());
    await runner.hears('welcome');
    const thief = new Dialler(hello());
    await thief.closed;
    expect(refused).toEqual(['another key is bound to this sandbox']);
    expect(hub.linked).toBe(true);
    const again = new Dialler(hello({ token: null }, runner.keys));
    await again.hears('welcome');
    await runner.closed;
    expect(hub.linked).toBe(true);
  });

  it('is refused without proof; each reason is told once, however often somebody knocks', async () => {
    await open();
    const other = generateKeyPairSync('ed25519');
    const tries: ((nonce: string, own: Dialler) => string)[] = [
      hello({ token: 'guess' }),
      hello({ token: null }),
      hello({ publicKey: spki(other.publicKey) }),
      hello({ publicKey: 'nonsense' }),
      (nonce, own) => hello()(`${nonce}x`, own),
      () =>
        JSON.stringify({
          type: 'done',
          callId: 'c1',
          result: { outcome: 'completed', isError: false, text: 'forged' },
        }),
      () => 'not json',
    ];
    for (const answer of [...tries, ...tries, ...tries]) await new Dialler(answer).closed;
    expect(refused.toSorted((a, b) => a.localeCompare(b))).toEqual([
      'it did not say hello',
      'its key cannot be read',
      'its signature is wrong',
      'its token is wrong',
    ]);
    expect([hub.linked, recorded]).toEqual([false, []]);
  });

  it('finds the newest hub, also when an older one lets go of its socket late', async () => {
    await open();
    const older = hub;
    await open();
    await older.close();
    await new Dialler(hello()).hears('welcome');
    expect(hub.linked).toBe(true);
  });

  it('stands in a folder whose path is too long for a socket', async () => {
    const short = folder;
    folder = join(folder, 'long'.repeat(30), 'link');
    mkdirSync(folder, { recursive: true });
    await open();
    symlinkSync(folder, join(short, 'link'));
    await new Dialler(hello(), join(short, 'link')).hears('welcome');
    expect(hub.linked).toBe(true);
    folder = short;
  });

  it('is not kept out by many that stay silent', async () => {
    await open();
    const silent = Array.from({ length: 40 }, () => new Dialler(() => null));
    await Promise.all(silent.map(({ closed }) => closed));
    expect(refused).toEqual([]);
    await new Dialler(hello()).hears('welcome');
    expect(hub.linked).toBe(true);
  }, 15_000);
});

describe('a call', () => {
  it('brings its result, and its whole output as it comes', async () => {
    await open();
    const runner = new Dialler(hello());
    await runner.hears('welcome');
    const outcomes = [hub.exec(call), hub.exec(call)];
    for (const piece of ['one ', 'two'])
      runner.say({ type: 'output', callId: 'c1', data: Buffer.from(piece).toString('base64') });
    runner.say({ type: 'done', callId: 'c1', result: { outcome: 'completed', isError: false, text: 'cut' } });
    for (const outcome of outcomes)
      expect(await outcome).toEqual({
        outcome: 'completed',
        isError: false,
        text: 'cut',
        fullOutput: { digest: 'one two', sizeBytes: 7 },
      });
    expect(hub.busy).toBe(false);
  });

  it('is lost with its link, and what came of its output is dropped', async () => {
    await open();
    const runner = new Dialler(hello());
    await runner.hears('welcome');
    const outcome = hub.exec(call);
    runner.say({ type: 'output', callId: 'c1', data: 'AAAA' });
    await runner.hears('exec');
    await sleep(50);
    runner.socket.terminate();
    await expect(outcome).rejects.toMatchObject({ code: 'sandbox.link-lost' });
    await sleep(20);
    expect(kept).toEqual(['broken off']);
    await expect(hub.exec(call)).rejects.toMatchObject({ code: 'sandbox.link-lost' });
  });

  it('of an older generation is refused', async () => {
    await open();
    const runner = new Dialler(hello());
    await runner.hears('welcome');
    const outcome = hub.exec(call);
    runner.say({ type: 'refused', callId: 'c1', code: 'stale-generation' });
    await expect(outcome).rejects.toMatchObject({ code: 'sandbox.stale-generation' });
  });
});
