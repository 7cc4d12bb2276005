import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { startPlatform } from '@holdfast/testing';
import { expect, it } from '@jest/globals';

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
