import { cp, mkdir, readdir, readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type Bus, connectBus, deleteEventsStream, Relay, relayedThrough } from '@holdfast/bus';
import { AppError } from '@holdfast/contracts';
import {
  type AnyProjection,
  backup,
  checkLog,
  compareProjection,
  createLogPool,
  EventLog,
  rebaseLog,
  rebuildProjection,
  restore,
} from '@holdfast/event-store';
import type pg from 'pg';
import { z } from 'zod';
import { PostgresRelaySource } from '../relay/relay-source.ts';
import { sessionProjection } from '../session/session.projection.ts';

export interface MaintenanceOptions {
  /** The owner's connection: restore and rebase touch what services may not. */
  readonly databaseUrl: string;
  /** The blob store's folder; null = it is a bucket, which is not this command's to copy. */
  readonly blobDir: string | null;
  readonly nats: { readonly servers: string; readonly user: string; readonly password: string };
  readonly say: (line: string) => void;
}

const PROJECTIONS: readonly AnyProjection[] = [sessionProjection];
const DATABASE_FILE = 'database.jsonl.gz';
/** Written last: a folder without it is no whole backup. */
const MANIFEST_FILE = 'backup.json';
const manifest = z.object({ madeAt: z.string(), rows: z.record(z.string(), z.number()) });

/** What operators do with the log by hand. Each resolves once it is done and throws an AppError that says what to do. */
export class Maintenance {
  readonly #options: MaintenanceOptions;

  constructor(options: MaintenanceOptions) {
    this.#options = options;
  }

  /** Finds gaps in streams, and rows of projections that a fresh fold does not give. Changes nothing. Returns the faults. */
  check(): Promise<string[]> {
    return this.#withLog(async (pool, log) => {
      const faults = (await checkLog(pool)).map(({ streamId, fault }) => `${streamId}: ${fault}`);
      for (const projection of PROJECTIONS) {
        const different = await compareProjection(pool, log, projection as never);
        faults.push(
          ...different.map(({ streamId }) => `${streamId}: its row in ${projection.name} is not what its events say`),
        );
      }
      return faults;
    });
  }

  /** Writes a projection's rows anew from the log, stream by stream, while services run (L6). Returns how many streams. */
  rebuild(name: string): Promise<number> {
    const projection = PROJECTIONS.find((known) => known.name === name);
    if (projection === undefined) {
      const known = PROJECTIONS.map((one) => one.name).join(', ');
      throw new AppError('invalid', 'maintenance.projection', `There is no projection ${name}; there is: ${known}.`);
    }
    return this.#withLog((pool, log) =>
      rebuildProjection(pool, log, projection as never, {
        onProgress: (streams) => this.#options.say(`${streams} streams`),
      }),
    );
  }

  /** One consistent picture of the database, then the blobs it names, into an empty folder; services may run. */
  async backup(folder: string): Promise<Record<string, number>> {
    await mkdir(folder, { recursive: true, mode: 0o700 });
    if ((await readdir(folder)).length > 0)
      throw new AppError('rejected', 'backup.folder', `${folder} is not empty; a backup gets a folder of its own.`);
    const rows = await backup(this.#options.databaseUrl, join(folder, DATABASE_FILE));
    const { blobDir } = this.#options;
    if (blobDir === null) this.#options.say('the blobs are not part of it: back up their bucket, after this');
    // Blobs are durable before the event that names them, and never change: copied afterwards they are all there.
    else if (await exists(blobDir))
      await cp(blobDir, join(folder, 'blobs'), { recursive: true, preserveTimestamps: true });
    await writeFile(join(folder, MANIFEST_FILE), JSON.stringify({ madeAt: new Date().toISOString(), rows }), {
      flush: true,
    });
    return rows;
  }

  /** Loads a backup into a database without events, rebased onto this cluster (L5), and has EVENTS filled from it. */
  async restore(folder: string): Promise<Record<string, number>> {
    const text = await readFile(join(folder, MANIFEST_FILE), 'utf8').catch((cause: unknown) => {
      throw new AppError(
        'invalid',
        'backup.incomplete',
        `${folder} holds no whole backup: ${MANIFEST_FILE} is missing.`,
        {
          cause,
        },
      );
    });
    const { rows: wanted } = manifest.parse(JSON.parse(text));
    const rows = await restore(this.#options.databaseUrl, join(folder, DATABASE_FILE));
    for (const [table, count] of Object.entries(wanted)) {
      if ((rows[table] ?? 0) !== count)
        throw new AppError('defect', 'backup.incomplete', `${table} has ${rows[table] ?? 0} rows, not ${count}.`);
    }
    const { blobDir } = this.#options;
    if (blobDir === null) this.#options.say('the blobs are not part of it: restore their bucket');
    else if (await exists(join(folder, 'blobs')))
      await cp(join(folder, 'blobs'), blobDir, { recursive: true, preserveTimestamps: true });
    await this.refill();
    return rows;
  }

  /** Makes transaction ids of a log that came from another cluster usable in this one (L5). No service may run. */
  async rebase(): Promise<number> {
    const { events } = await this.#withLog((pool) => rebaseLog(pool));
    await this.refill();
    return events;
  }

  /** Empties EVENTS and publishes the whole log into it anew; services may run (B1). */
  refill(): Promise<void> {
    return this.#withLog(async (pool, log) => {
      const bus = await connectBus({ ...this.#options.nats, name: 'maintenance' });
      const source = new PostgresRelaySource(pool, log, this.#options.databaseUrl);
      // A running service's relay may lead; this one does where none runs.
      const relay = new Relay({
        bus,
        source,
        onError: (error) => this.#options.say(`the relay tries again: ${String(error)}`),
      });
      try {
        await deleteEventsStream(bus);
        relay.start();
        await this.#untilRelayed(bus, source, log);
      } finally {
        await relay.stop();
        await bus.close();
      }
    });
  }

  async #untilRelayed(bus: Bus, source: PostgresRelaySource, log: EventLog): Promise<void> {
    for (let reportedAt = Date.now(); ; ) {
      const after = await relayedThrough(bus, source);
      if (after !== null && (await log.readAll({ after, limit: 1 })).events.length === 0) return;
      if (after === null && (await log.readAll({ after: { txid: '0', position: '0' }, limit: 1 })).events.length === 0)
        return;
      if (Date.now() - reportedAt > 5_000) {
        reportedAt = Date.now();
        this.#options.say(`relayed up to position ${after?.position ?? 0}`);
      }
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }

  async #withLog<T>(work: (pool: pg.Pool, log: EventLog) => Promise<T>): Promise<T> {
    const pool = createLogPool({
      connectionString: this.#options.databaseUrl,
      applicationName: 'holdfast-maintenance',
      max: 4,
    });
    const log = new EventLog({ pool });
    try {
      return await work(pool, log);
    } finally {
      await log.close();
      await pool.end();
    }
  }
}

function exists(path: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    () => false,
  );
}
