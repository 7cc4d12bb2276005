import { randomBytes } from 'node:crypto';
import { chmod, constants, open, rename } from 'node:fs/promises';
import type { Server } from 'node:net';
import { join } from 'node:path';

/**
 * Listens on the socket `name` in a folder, in place of whoever did before. Everyone who reaches the folder may dial.
 *
 * It is made under a name of its own and renamed: there is no moment without a socket, and a server that is closed late
 * takes away its own, never its successor's. The folder's path may be longer than a socket's may be.
 */
export async function listenIn(folder: string, name: string, server: Server): Promise<void> {
  const own = `${name}.${randomBytes(4).toString('hex')}`;
  const handle = await open(folder, constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(process.platform === 'linux' ? `/proc/self/fd/${handle.fd}/${own}` : join(folder, own), resolve);
    });
  } finally {
    await handle.close();
  }
  await chmod(join(folder, own), 0o666);
  await rename(join(folder, own), join(folder, name));
}
