import type { RelayCursor, RelaySource } from '@holdfast/bus';
import type { EventLog } from '@holdfast/event-store';
import pg from 'pg';

const NAME = 'events';
/** Advisory lock of the one relay of a log. */
const LEADER_LOCK = 4_711_170_002;

/** The log as the relay reads it. The leader holds an advisory lock on a connection of its own. */
export class PostgresRelaySource implements RelaySource {
  readonly #pool: pg.Pool;
  readonly #log: EventLog;
  readonly #connectionString: string;

  constructor(pool: pg.Pool, log: EventLog, connectionString: string) {
    this.#pool = pool;
    this.#log = log;
    this.#connectionString = connectionString;
  }

  readAll(options: { after: RelayCursor; limit: number }) {
    return this.#log.readAll(options);
  }

  async locate(eventId: string): Promise<{ cursor: RelayCursor; previousAt: string | null } | null> {
    const { rows } = await this.#pool.query<RelayCursor & { previous_at: Date | null }>(
      `select e.txid::text, e.position::text, (
         select p.recorded_at from events p where (p.txid, p.position) < (e.txid, e.position)
         order by p.txid desc, p.position desc limit 1
       ) as previous_at from events e where e.id = $1`,
      [eventId],
    );
    const [row] = rows;
    if (row === undefined) return null;
    const { txid, position, previous_at: previousAt } = row;
    return { cursor: { txid, position }, previousAt: previousAt?.toISOString() ?? null };
  }

  async loadCheckpoint(): Promise<RelayCursor | null> {
    const { rows } = await this.#pool.query<RelayCursor>(
      'select txid::text, position::text from relay_checkpoint where name = $1',
      [NAME],
    );
    return rows[0] ?? null;
  }

  async saveCheckpoint(cursor: RelayCursor): Promise<void> {
    await this.#pool.query(
      `insert into relay_checkpoint (name, txid, position) values ($1, $2::xid8, $3)
       on conflict (name) do update set txid = excluded.txid, position = excluded.position, updated_at = clock_timestamp()`,
      [NAME, cursor.txid, cursor.position],
    );
  }

  async tryLead(): Promise<{ readonly lost: Promise<void>; release(): Promise<void> } | null> {
    const client = new pg.Client({
      connectionString: this.#connectionString,
      application_name: 'holdfast-relay',
      keepAlive: true,
    });
    const lost = new Promise<void>((resolve) => {
      client.on('error', () => resolve());
      client.on('end', () => resolve());
    });
    const release = (): Promise<void> => client.end().catch(() => undefined);
    try {
      await client.connect();
      const { rows } = await client.query<{ mine: boolean }>('select pg_try_advisory_lock($1) as mine', [LEADER_LOCK]);
      if (rows[0]?.mine === true) return { lost, release };
    } catch (error) {
      await release();
      throw error;
    }
    await release();
    return null;
  }
}
