import { createHash, generateKeyPairSync } from 'node:crypto';
import { mkdirSync, mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import { Dialler, hello, spki } from '../test/dialler.ts';
import { LocalDoor } from './local-door.ts';
import type { RunnerLink } from './runner-link.ts';

let folder: string;
let door: LocalDoor;
let links: RunnerLink[];
let refused: string[];
let recorded: { journalId: string; publicKey: string }[];
let failToRecord: boolean;

async function open(publicKey: string | null = null): Promise<void> {
  door = new LocalDoor({
    linkDir: folder,
    proof: { tokenHash: createHash('sha256').update('the-token').digest('hex'), publicKey },
    record: async (facts) => {
      await sleep(20);
      if (failToRecord) throw new Error('Postgres is away');
      recorded.push(facts);
    },
    onLink: (link) => {
      links.push(link);
      link.welcome({ env: { COLOUR: 'teal' }, keep: () => Promise.resolve(null) });
    },
    onRefused: (reason) => refused.push(reason),
  });
  await door.listen();
}
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'holdfast-door-'));
  [links, refused, recorded, failToRecord] = [[], [], [], false];
});
afterEach(async () => {
  await door.close();
  rmSync(folder, { recursive: true });
});
const dial = (answer: ConstructorParameters<typeof Dialler>[1], linkDir = folder): Dialler =>
  new Dialler(`ws+unix://${join(linkDir, 'hub.sock')}:/runner-link`, answer);
const standing = (): number => links.filter((link) => link.open).length;

describe('a link', () => {
  it('stands once its key is recorded, and the environment comes with the welcome', async () => {
    await open();
    const runner = dial(hello());
    await runner.hears('welcome');
    expect(recorded).toEqual([{ journalId: 'j1', publicKey: spki(runner.keys.publicKey) }]);
    expect(runner.heard[1]).toEqual({ type: 'welcome', env: { COLOUR: 'teal' } });
    expect(links.map((link) => [link.open, link.journalId, link.pod])).toEqual([[true, 'j1', null]]);
  });

  it('is not welcome while its key cannot be recorded: it still has its token', async () => {
    await open();
    failToRecord = true;
    const runner = dial(hello());
    await runner.closed;
    expect([runner.heard.map(({ type }) => type), links, refused]).toEqual([['challenge'], [], []]);
  });

  it('needs the token once, and from then on the key that it was bound to (X5)', async () => {
    await open();
    const runner = dial(hello());
    await runner.hears('welcome');
    const thief = dial(hello());
    await thief.closed;
    expect(refused).toEqual(['another key is bound to this sandbox']);
    expect(standing()).toBe(1);
    const again = dial(hello({ token: null }, runner.keys));
    await again.hears('welcome');
    await runner.closed;
    expect(links.map((link) => link.open)).toEqual([false, true]);
  });

  it('is refused without proof; each reason is told once, however often somebody knocks', async () => {
    await open();
    const other = generateKeyPairSync('ed25519');
    const tries: ((nonce: string, own: Dialler) => string)[] = [
      hello({ token: 'guess' }),
      hello({ token: null }),
      hello({ publicKey: spki(other.publicKey) }),
      hello({ publicKey: 'nonsense' }),
      hello({ channel: 'egress' }),
      (nonce, own) => hello()(`${nonce}x`, own),
      () =>
        JSON.stringify({
          type: 'done',
          callId: 'c1',
          result: { outcome: 'completed', isError: false, text: 'forged' },
        }),
      () => 'not json',
    ];
    for (const answer of [...tries, ...tries, ...tries]) await dial(answer).closed;
    expect(refused.toSorted((a, b) => a.localeCompare(b))).toEqual([
      'it asked for a channel that is not here',
      'it did not say hello',
      'its key cannot be read',
      'its signature is wrong',
      'its token is wrong',
    ]);
    expect([links, recorded]).toEqual([[], []]);
  });

  it('finds the newest door, also when an older one lets go of its socket late', async () => {
    await open();
    const older = door;
    await open();
    await older.close();
    await dial(hello()).hears('welcome');
    expect(standing()).toBe(1);
  });

  it('stands in a folder whose path is too long for a socket', async () => {
    const short = folder;
    folder = join(folder, 'long'.repeat(30), 'link');
    mkdirSync(folder, { recursive: true });
    await open();
    symlinkSync(folder, join(short, 'link'));
    await dial(hello(), join(short, 'link')).hears('welcome');
    expect(standing()).toBe(1);
    folder = short;
  });

  it('is not kept out by many that stay silent', async () => {
    await open();
    const silent = Array.from({ length: 40 }, () => dial(() => null));
    await Promise.all(silent.map(({ closed }) => closed));
    expect(refused).toEqual([]);
    await dial(hello()).hears('welcome');
    expect(standing()).toBe(1);
  }, 15_000);

  it('ends with its door', async () => {
    await open();
    const runner = dial(hello());
    await runner.hears('welcome');
    await door.close();
    await runner.closed;
    expect(standing()).toBe(0);
  });
});
