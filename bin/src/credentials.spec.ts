import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from '@jest/globals';
import { writeCredentials } from './credentials.ts';
import { superuserUrl } from './postgres.ts';
import { loadSettings } from './settings.ts';

const dir = mkdtempSync(join(tmpdir(), 'holdfast-credentials-'));
afterAll(() => rmSync(dir, { recursive: true, force: true }));
const addresses = { postgres: 'postgres:5432', nats: 'nats:4222' };
const settings = { ...loadSettings({ HOLDFAST_ENV_FILE: join(dir, 'env') }), addresses };
const read = (...path: string[]): string => readFileSync(join(dir, ...path), 'utf8');

describe('the credentials of containers', () => {
  it('let every service in as its own role and NATS user', () => {
    writeCredentials(settings, dir);
    const superuser = new URL(superuserUrl(settings));
    expect(read('postgres', 'password')).toBe(superuser.password);
    const passwords = new Set([superuser.password]);
    for (const [service, role] of [
      ['session', 'holdfast_session'],
      ['sandbox', 'holdfast_sandbox'],
      ['gateway-api', 'holdfast_gateway'],
    ] as const) {
      const url = new URL(read(service, 'database-url'));
      expect([url.username, url.host, url.pathname]).toEqual([role, 'postgres:5432', '/holdfast']);
      passwords.add(url.password).add(read(service, 'nats-password'));
      expect(read('nats', 'nats.conf')).toContain(
        `{ user: "${service}", password: ${JSON.stringify(read(service, 'nats-password'))}`,
      );
    }
    passwords.add(read('sandbox', 'hub-secret'));
    passwords.add(read('sandbox', 'checkpoint-key'));
    expect(passwords.size).toBe(9);
    for (const line of ['listen: "0.0.0.0:4222"', 'http: "127.0.0.1:8222"'])
      expect(read('nats', 'nats.conf')).toContain(`${line}\n`);
  });

  it('are the same when they are written again, and can be read by whoever mounts them', () => {
    const all = (): string[] =>
      readdirSync(dir, { recursive: true, withFileTypes: true })
        .filter((entry) => entry.isFile())
        .map(({ parentPath, name }) => `${parentPath}/${name} ${readFileSync(join(parentPath, name), 'utf8')}`)
        .sort();
    writeCredentials(settings, dir);
    const before = all();
    writeCredentials({ ...loadSettings({ HOLDFAST_ENV_FILE: join(dir, 'env') }), addresses }, dir);
    expect(all()).toEqual(before);
    expect(statSync(join(dir, 'postgres', 'password')).mode & 0o777).toBe(0o644);
    expect(statSync(join(dir, 'env')).mode & 0o777).toBe(0o600);
  });
});
