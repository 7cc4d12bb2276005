import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, it } from '@jest/globals';
import { fetchRelease, RELEASE } from './nats-server.ts';

it('refuses a release archive that is not the pinned one, and keeps nothing of it', async () => {
  const folder = join(mkdtempSync(join(tmpdir(), 'holdfast-spec-')), 'nats');
  const asked: string[] = [];
  const server = createServer((request, response) => {
    asked.push(request.url ?? '');
    response.end('not an archive');
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  try {
    const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    await expect(fetchRelease(folder, url)).rejects.toThrow('has SHA-256');
    expect(asked).toEqual([expect.stringMatching(`^/v${RELEASE.version}/nats-server-v${RELEASE.version}-linux-`)]);
    expect(existsSync(folder)).toBe(false);
  } finally {
    server.close();
    rmSync(join(folder, '..'), { recursive: true, force: true });
  }
});
