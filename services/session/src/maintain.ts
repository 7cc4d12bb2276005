import 'reflect-metadata';
import { blobPlace, blobSettings, loadConfig, runService } from '@holdfast/platform';
import { z } from 'zod';
import { Maintenance } from './maintenance/maintenance.commands.ts';

const HELP = `usage: bin/log COMMAND
  check            finds gaps in streams and rows that a fresh fold does not give; exit code 1 when it found any
  rebuild NAME     writes a projection's rows anew from the log, online; NAME: sessions
  backup FOLDER    the database and a blob folder into a new folder, while services run
  restore FOLDER   a backup into a database without events; needs the services stopped
  rebase           mends a log whose database came from another Postgres cluster; needs the services stopped
  refill           empties the JetStream stream EVENTS and fills it from Postgres, while services run
`;

const write = (line: string): void => void process.stdout.write(`${line}\n`);

/** `node dist/maintain.js COMMAND`: looks after the event log. */
await runService(async () => {
  const [command, argument, ...rest] = process.argv.slice(2);
  const takesArgument = command !== undefined && ['rebuild', 'backup', 'restore'].includes(command);
  if (command === undefined || command === '--help' || rest.length > 0 || (argument !== undefined) !== takesArgument) {
    process.stdout.write(HELP);
    process.exitCode = command === '--help' ? 0 : 1;
    return;
  }
  const config = loadConfig(
    z.object({
      /** The owner's connection. */
      DATABASE_URL: z.string().min(1),
      NATS_URL: z.string().default('nats://127.0.0.1:4222'),
      NATS_USER: z.string().default(''),
      NATS_PASSWORD: z.string().default(''),
      ...blobSettings,
    }),
    process.env,
  );
  const place = blobPlace(config);
  const maintenance = new Maintenance({
    databaseUrl: config.DATABASE_URL,
    blobDir: 'folder' in place ? place.folder : null,
    nats: { servers: config.NATS_URL, user: config.NATS_USER, password: config.NATS_PASSWORD },
    say: write,
  });
  switch (command) {
    case 'check': {
      const faults = await maintenance.check();
      for (const fault of faults) write(fault);
      write(faults.length === 0 ? 'the log is whole and every row is what its events say' : `${faults.length} faults`);
      process.exitCode = faults.length === 0 ? 0 : 1;
      return;
    }
    case 'rebuild':
      return write(`rebuilt ${await maintenance.rebuild(argument ?? '')} streams`);
    case 'backup':
      return write(`backed up ${summary(await maintenance.backup(argument ?? ''))}`);
    case 'restore':
      return write(`restored ${summary(await maintenance.restore(argument ?? ''))}`);
    case 'rebase':
      return write(`rebased ${await maintenance.rebase()} events`);
    case 'refill':
      await maintenance.refill();
      return write('EVENTS holds the log again');
    default:
      process.stdout.write(HELP);
      process.exitCode = 1;
  }
});

function summary(rows: Record<string, number>): string {
  return Object.entries(rows)
    .map(([table, count]) => `${count} ${table}`)
    .join(', ');
}
