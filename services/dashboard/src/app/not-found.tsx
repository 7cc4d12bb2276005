'use client';
import { Compass } from 'lucide-react';
import Link from 'next/link';
import { buttonClass, Empty } from '../components/ui.tsx';

export default function NotFound() {
  return (
    <main className="grid min-h-dvh place-items-center">
      <Empty icon={<Compass />} title="There is no such page">
        <Link className={buttonClass('plain')} href="/sessions">
          Go to the sessions
        </Link>
      </Empty>
    </main>
  );
}
